//! The exchange under any list of inputs: honest, hostile, late or out of order.

#[path = "exchange/model.rs"]
mod model;

use model::{Model, Operation, PEERS, PIECES, Said};
use proptest::collection::vec;
use proptest::prelude::*;
use shoal_proto::exchange::Role;

fn said() -> impl Strategy<Value = Said> {
    let piece = || 0..PIECES;
    prop_oneof![
        1 => Just(Said::Seeder),
        4 => vec(piece(), 0..40).prop_map(Said::Announce),
        2 => (vec(piece(), 0..40), vec(piece(), 0..40)).prop_map(|(held, not)| Said::Selective(held, not)),
        2 => vec(piece(), 0..5).prop_map(Said::Have),
        6 => proptest::option::weighted(0.2, piece()).prop_map(Said::Grant),
        1 => piece().prop_map(Said::Request),
        1 => any::<bool>().prop_map(Said::Decline),
        1 => piece().prop_map(Said::Cancel),
        1 => piece().prop_map(Said::Withdraw),
        2 => (piece(), any::<bool>()).prop_map(|(piece, live)| Said::Intent(piece, live)),
        2 => (vec(piece(), 0..20), any::<bool>()).prop_map(|(pieces, covered)| Said::Covered(pieces, covered)),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let peer = || 0..PEERS;
    let piece = || 0..PIECES;
    prop_oneof![
        3 => peer().prop_map(Operation::Connect),
        1 => peer().prop_map(Operation::Disconnect),
        1 => (peer(), 0usize..200).prop_map(|(peer, len)| Operation::AnnounceOther(peer, len)),
        12 => (peer(), said()).prop_map(|(peer, said)| Operation::Say(peer, said)),
        1 => (peer(), piece()).prop_map(|(peer, piece)| Operation::Progress(peer, piece)),
        1 => (peer(), piece()).prop_map(|(peer, piece)| Operation::Received(peer, piece)),
        1 => piece().prop_map(Operation::Stored),
        1 => piece().prop_map(Operation::Corrupt),
        1 => piece().prop_map(Operation::Dropped),
        1 => (peer(), piece()).prop_map(|(peer, piece)| Operation::Sent(peer, piece)),
        1 => (peer(), piece()).prop_map(|(peer, piece)| Operation::Unsent(peer, piece)),
        1 => piece().prop_map(Operation::Lost),
        3 => (0u64..5_000_000_000).prop_map(Operation::Wait),
        16 => Just(Operation::Comply),
    ]
}

fn check_all(role: Role, held: &[u32], unwanted: &[u32], operations: Vec<Operation>) {
    let mut model = Model::new(role, held, unwanted);
    for operation in operations {
        model.perform(operation);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_node_survives_any_inputs(
        held in vec(0..PIECES, 0..60),
        unwanted in vec(0..PIECES, 0..30),
        operations in vec(operation(), 1..200),
    ) {
        check_all(Role::Node, &held, &unwanted, operations);
    }

    #[test]
    fn a_seeder_survives_any_inputs(operations in vec(operation(), 1..200)) {
        check_all(Role::Seeder, &[], &[], operations);
    }
}
