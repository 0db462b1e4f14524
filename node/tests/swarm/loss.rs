//! A peer that cannot read any more what it said it holds.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_node::block::EncodedBlock;
use shoal_node::peer::{BlockSource, BoxError, PeerRole, StoreOnly};
use shoal_node::store::Store;
use shoal_proto::cid::Cid;

use crate::member::{Collected, Member, Shelf, image, within};

/// Makes blocks out of what is installed, so far as that was left alone; has the rest when the store has it.
struct Installed {
    blocks: Vec<EncodedBlock>,
    changed: Mutex<BTreeSet<Cid>>,
    store: Arc<Store>,
}

impl BlockSource for Installed {
    fn block(&self, cid: &Cid) -> Result<Option<EncodedBlock>, BoxError> {
        if let Some(stored) = self.store.get(cid)? {
            return Ok(Some(stored));
        }
        if self.changed.lock().unwrap().contains(cid) {
            return Err("its file was changed".into());
        }
        Ok(self.blocks.iter().find(|block| block.cid == *cid).cloned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_loses_is_had_from_a_node_and_comes_back_to_the_source() {
    loses_what_is_had_from(PeerRole::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_loses_is_had_from_a_seeder_and_comes_back_to_the_source() {
    loses_what_is_had_from(PeerRole::Seeder).await;
}

async fn loses_what_is_had_from(role: PeerRole) {
    let (list, blocks, raw) = image(20);
    let lost: Vec<_> = list.indexes().filter(|piece| [3, 7, 11].contains(&piece.get())).collect();
    let changed = Mutex::new(lost.iter().map(|piece| list.piece(*piece).cid).collect());
    let make = |store| Arc::new(Installed { blocks: blocks.clone(), changed, store });
    let source = Member::start_with(PeerRole::Node, 1, Shelf(None), &[], &[], make).await;
    let sink = Arc::new(Collected::default());
    within(source.hold(&list, sink.clone()).await.completed()).await.unwrap();

    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&source]).await;
    let fetched = Arc::new(Collected::default());
    let trade = node.fetch(&list, fetched.clone()).await;
    // Only the source is there: it is asked for everything, and withdraws what it cannot read.
    node.reaches(|trade| trade.held == 17 && trade.waiting.iter().all(|(_, holders)| holders.is_empty()))
        .await;
    source.reaches(|trade| trade.held == 17).await;
    assert!(sink.0.lock().unwrap().is_empty());

    let shelf = Shelf(Some(list.clone()).filter(|_| role == PeerRole::Seeder));
    let other = Member::start(role, 1, shelf, &blocks, &[&source, &node]).await;
    let _serving =
        if role == PeerRole::Node { Some(other.hold(&list, Arc::new(StoreOnly)).await) } else { None };
    within(trade.completed()).await.unwrap();
    source.reaches(|trade| trade.held == 20).await;
    let mut written = std::mem::take(&mut *fetched.0.lock().unwrap());
    written.sort();
    assert!(written == list.indexes().zip(raw.iter().cloned()).collect::<Vec<_>>());
    // What came back went through the sink of the trade that had been complete, and is served out of the store.
    let written_again = async {
        while sink.0.lock().unwrap().len() < lost.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(written_again).await;
    let mut again = std::mem::take(&mut *sink.0.lock().unwrap());
    again.sort();
    assert!(again == lost.iter().map(|piece| (*piece, raw[piece.at()].clone())).collect::<Vec<_>>());
    assert!(lost.iter().all(|piece| source.store.contains(&list.piece(*piece).cid)));
    assert_eq!(source.store.stats().unwrap().blocks, 3);
}
