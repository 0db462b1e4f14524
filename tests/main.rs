//! The whole, as processes over loopback. Each file is a promise to whoever installs machines with Shoal.

#![cfg(test)]

mod tidy;
