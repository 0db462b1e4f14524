//! The exchange under a list of inputs that is read from bytes.

use shoal_proto::exchange::Role;

use crate::Script;
use crate::model::{Model, Operation, PEERS, PIECES, Said};

/// Most inputs of one list: the time of a run grows with them, what they reach hardly does.
const OPERATIONS_MAX: usize = 400;

/// Drives an exchange with the inputs; the model asserts its invariants after each of them.
pub fn exchange(input: &[u8]) {
    let mut script = Script(input);
    let head = script.byte();
    let role = if head & 1 == 0 { Role::Node } else { Role::Seeder };
    let held = pieces(&mut script);
    let unwanted = if head & 2 == 0 { Vec::new() } else { pieces(&mut script) };
    let unwanted = if matches!(role, Role::Seeder) { Vec::new() } else { unwanted };
    let mut model = Model::new(role, &held, &unwanted);
    for _ in 0..OPERATIONS_MAX {
        if script.is_over() {
            break;
        }
        model.perform(operation(&mut script));
    }
}

/// A set of pieces: runs of them, so that few bytes make many.
fn pieces(script: &mut Script<'_>) -> Vec<u32> {
    let mut pieces = Vec::new();
    for _ in 0..script.below(4) {
        let (first, count) = (script.below(PIECES), script.below(PIECES));
        pieces.extend((first..first + count).map(|piece| piece % PIECES));
    }
    pieces
}

fn operation(script: &mut Script<'_>) -> Operation {
    let kind = script.byte();
    let peer = script.below(PEERS);
    match kind % 32 {
        0..=2 => Operation::Connect(peer),
        3 => Operation::Disconnect(peer),
        4 => Operation::AnnounceOther(peer, usize::from(script.byte())),
        5..=14 => Operation::Say(peer, said(script)),
        15 => Operation::Progress(peer, script.below(PIECES)),
        16 => Operation::Received(peer, script.below(PIECES)),
        17 => Operation::Stored(script.below(PIECES)),
        18 => Operation::Corrupt(script.below(PIECES)),
        19 => Operation::Dropped(script.below(PIECES)),
        20 => Operation::Sent(peer, script.below(PIECES)),
        21 => Operation::Unsent(peer, script.below(PIECES)),
        22 => Operation::Lost(script.below(PIECES)),
        23 | 24 => Operation::Wait(u64::from(script.number()) * 2),
        _ => Operation::Comply,
    }
}

fn said(script: &mut Script<'_>) -> Said {
    match script.below(16) {
        0 => Said::Seeder,
        1..=3 => Said::Announce(pieces(script)),
        4 => Said::Selective(pieces(script), pieces(script)),
        5 => Said::Have(pieces(script)),
        6 | 7 => Said::Grant(None),
        8 => Said::Grant(Some(script.below(PIECES))),
        9 => Said::Request(script.below(PIECES)),
        10 => Said::Decline(script.below(2) == 0),
        11 => Said::Cancel(script.below(PIECES)),
        12 => Said::Withdraw(script.below(PIECES)),
        13 => Said::Intent(script.below(PIECES), script.below(2) == 0),
        _ => Said::Covered(pieces(script), script.below(2) == 0),
    }
}
