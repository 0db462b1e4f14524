//! Nothing unverified is offered: what a host announces, grants by name or sends, it holds.

use anyhow::ensure;
use shoal_proto::exchange::{Announcement, Message, Output};
use shoal_proto::image::PieceIndex;

use crate::trader::Trader;

pub(crate) fn check(host: u32, trader: &impl Trader, output: &Output) -> anyhow::Result<()> {
    let holds = |piece: PieceIndex| trader.held().contains(piece);
    match output {
        Output::SendPiece { piece, .. } => ensure!(holds(*piece), "host {host} sends {piece} unheld"),
        Output::Send { message, .. } => match message {
            Message::Announce(Announcement::Seeder) => {
                ensure!(trader.is_complete(), "host {host} calls itself a seeder");
            }
            Message::Announce(Announcement::Held(shown)) => {
                ensure!(!shown.has_any_not_in(trader.held()), "host {host} announces what it lacks");
            }
            Message::Have(pieces) => {
                ensure!(pieces.iter().all(|&piece| holds(piece)), "host {host} announces {pieces:?} unheld");
            }
            Message::Grant(Some(piece)) => ensure!(holds(*piece), "host {host} grants {piece} unheld"),
            Message::Grant(None) => {
                ensure!(!trader.held().is_empty(), "host {host} grants and holds nothing");
            }
            _ => {}
        },
        Output::Disconnect { .. } | Output::Event(_) => {}
    }
    Ok(())
}
