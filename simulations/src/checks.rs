//! What must hold after every event and at the end, a file for each.
//!
//! The exchange's own invariants are `Exchange::assert_invariants`; the loop calls it after one event in so many.

pub(crate) mod conservation;
pub(crate) mod liveness;
pub(crate) mod lost;
pub(crate) mod offers;
