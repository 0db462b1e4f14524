//! At the end every live host is complete.

use crate::host::Host;

/// Hosts named in the message; more are only counted.
const NAMED_MAX: usize = 5;

/// Says which live hosts lack what.
pub(crate) fn lacking(hosts: &[Host]) -> String {
    let unfinished = |host: &&Host| host.alive && !host.exchange.is_complete();
    let count = hosts.iter().filter(unfinished).count();
    let mut text = format!("{count} live hosts are not complete");
    let unfinished = hosts.iter().enumerate().filter(|(_, host)| unfinished(host));
    for (at, host) in unfinished.take(NAMED_MAX) {
        let held = host.exchange.held();
        let waits: Vec<_> = host.exchange.waiting_for(3).into_iter().map(|(piece, _)| piece).collect();
        text += &format!("\n  host {at} lacks {} pieces, first {waits:?}", held.len() - held.count());
    }
    text
}
