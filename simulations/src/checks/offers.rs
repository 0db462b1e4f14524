//! Nothing unverified is offered: what a host announces, grants by name or sends, it holds.

use anyhow::ensure;
use shoal_proto::exchange::{Announcement, Exchange, Message, Output};
use shoal_proto::image::PieceIndex;

pub(crate) fn check(host: u32, exchange: &Exchange, output: &Output) -> anyhow::Result<()> {
    let holds = |piece: PieceIndex| exchange.held().contains(piece);
    match output {
        Output::SendPiece { piece, .. } => ensure!(holds(*piece), "host {host} sends {piece:?} unheld"),
        Output::Send { message, .. } => match message {
            Message::Announce(Announcement::Seeder) => {
                ensure!(exchange.is_complete(), "host {host} calls itself a seeder");
            }
            Message::Announce(Announcement::Held(shown)) => {
                ensure!(!shown.has_any_not_in(exchange.held()), "host {host} announces what it lacks");
            }
            Message::Have(pieces) => {
                ensure!(pieces.iter().all(|&piece| holds(piece)), "host {host} announces {pieces:?} unheld");
            }
            Message::Grant(Some(piece)) => ensure!(holds(*piece), "host {host} grants {piece:?} unheld"),
            Message::Grant(None) => {
                ensure!(!exchange.held().is_empty(), "host {host} grants and holds nothing");
            }
            _ => {}
        },
        Output::Disconnect { peer, reason } => {
            anyhow::bail!("host {host} blames the honest {peer:?}: {reason}")
        }
        Output::Event(_) => {}
    }
    Ok(())
}
