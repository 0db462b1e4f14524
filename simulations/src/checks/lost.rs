//! What live nodes lack at the end is held by nobody who is alive: nothing is called lost that is to be had.

use anyhow::ensure;
use shoal_proto::exchange::Bitfield;

use crate::host::Host;
use crate::trader::Trader;

pub(crate) fn check<T: Trader>(hosts: &[&Host<T>]) -> anyhow::Result<()> {
    let honest = |host: &&&Host<T>| host.alive && !host.member.liar;
    let Some(first) = hosts.first() else { return Ok(()) };
    let mut somewhere = Bitfield::empty(first.trader.held().len());
    hosts.iter().filter(honest).for_each(|host| somewhere.insert_all(host.trader.held()));
    for host in hosts.iter().filter(honest) {
        ensure!(
            !somewhere.has_any_not_in(host.trader.held()),
            "host {} ends without a piece that another one holds",
            host.at
        );
    }
    Ok(())
}
