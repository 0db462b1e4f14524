//! A TCP relay that hears everything and understands nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What was said on one connection.
#[derive(Clone, Default)]
pub(crate) struct Conversation {
    /// By who dialed.
    pub(crate) said: Vec<u8>,
    pub(crate) answered: Vec<u8>,
}

pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    conversations: Arc<Mutex<Vec<Conversation>>>,
}

impl Relay {
    /// Passes on what comes to `target`, in the runtime of the caller.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let conversations = Arc::<Mutex<Vec<Conversation>>>::default();
        let record = conversations.clone();
        tokio::spawn(async move {
            while let Ok((dialer, _)) = listener.accept().await {
                let number = {
                    let mut record = record.lock().unwrap();
                    record.push(Conversation::default());
                    record.len() - 1
                };
                let (dialer_says, dialer_hears) = dialer.into_split();
                let (target_says, target_hears) = TcpStream::connect(target).await.unwrap().into_split();
                let (said, answered) = (record.clone(), record.clone());
                tokio::spawn(pass_on(dialer_says, target_hears, move |bytes| {
                    said.lock().unwrap()[number].said.extend_from_slice(bytes);
                }));
                tokio::spawn(pass_on(target_says, dialer_hears, move |bytes| {
                    answered.lock().unwrap()[number].answered.extend_from_slice(bytes);
                }));
            }
        });
        Self { address, conversations }
    }

    pub(crate) fn conversations(&self) -> Vec<Conversation> {
        self.conversations.lock().unwrap().clone()
    }
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, heard: impl Fn(&[u8])) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        heard(&bytes[..count]);
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
