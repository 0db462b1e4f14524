//! At the end every live host is complete.

use crate::host::Host;
use crate::trader::Trader;

/// Hosts named in the message; more are only counted.
const NAMED_MAX: usize = 5;

/// Says which live hosts lack what.
pub(crate) fn lacking<T: Trader>(hosts: &[&Host<T>]) -> String {
    let unfinished = |host: &&&Host<T>| host.is_awaited();
    let count = hosts.iter().filter(unfinished).count();
    let mut text = format!("{count} live hosts are not complete");
    for host in hosts.iter().filter(unfinished).take(NAMED_MAX) {
        let (at, held) = (host.at, host.trader.held());
        let waits: Vec<_> = host.trader.waiting_for(3).into_iter().map(|(piece, _)| piece).collect();
        text += &format!("\n  host {at} lacks {} pieces, first {waits:?}", held.len() - held.count());
    }
    text
}
