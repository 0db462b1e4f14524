//! What peers say and decide.
//!
//! An *image* is a captured tree, named by the CID of its root record ([`image`]). Its bytes travel as *pieces*
//! between peers that speak the messages of [`wire`], and [`exchange::Exchange`] decides what to say next, to the
//! neighbours that [`neighbourhood::Neighbourhood`] found.
//! [`zone`] says how far apart two of them stand, [`ticket`] and [`signing`] whom to trust, [`members`] who may take
//! part, [`assignment`] what a host is to be, [`release`] which image a channel is at, and [`rollout`] who may apply it
//! when, as far as what the nodes say of themselves ([`fleet`]) allows.
//!
//! **Invariant:** nothing here opens a file or a socket, reads a clock, draws OS randomness, or iterates in random
//! order. Time, randomness and the results of I/O are arguments, so that a simulation is the real code.

pub mod assignment;
pub mod cid;
pub mod exchange;
pub mod fleet;
pub mod host;
pub mod image;
pub mod members;
pub mod metrics;
pub mod neighbourhood;
pub mod rate;
pub mod release;
pub mod rollout;
pub mod signing;
pub mod ticket;
pub mod time;
pub mod wire;
pub mod zone;
