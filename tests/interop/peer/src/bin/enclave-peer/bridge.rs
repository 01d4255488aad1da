//! The router's part: binary WebSocket messages to bytes and back, without looking inside.

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::WebSocketStream;

/// The server's handshake message. Clients may take it for exactly one WebSocket message.
const HANDSHAKE_ANSWER: usize = 48;

#[derive(Clone, Copy)]
pub struct Settings {
    /// Largest single write to, and read from, the enclave's socket.
    pub chunk: usize,
    /// Largest WebSocket message towards the client, after the handshake.
    pub message_limit: usize,
}

type Ws = WebSocketStream<TcpStream>;

/// Ends when either direction does.
pub async fn run(ws: Ws, socket: UnixStream, settings: Settings) {
    let (mut sink, stream) = ws.split();
    let (from_enclave, to_enclave) = socket.into_split();
    let ended = tokio::select! {
        result = inbound(stream, to_enclave, settings) => result,
        result = outbound(from_enclave, &mut sink, settings) => result,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "bridge ended");
    }
    let _ = sink.close().await;
}

async fn inbound(
    mut ws: SplitStream<Ws>,
    mut enclave: OwnedWriteHalf,
    settings: Settings,
) -> Result<(), Error> {
    while let Some(message) = ws.next().await {
        match message? {
            Message::Binary(bytes) => {
                for piece in bytes.chunks(settings.chunk) {
                    enclave.write_all(piece).await?;
                }
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    Ok(())
}

async fn outbound(
    mut enclave: OwnedReadHalf,
    ws: &mut SplitSink<Ws, Message>,
    settings: Settings,
) -> Result<(), Error> {
    let mut buffer = vec![0u8; settings.chunk];
    let mut handshake_left = HANDSHAKE_ANSWER;
    loop {
        let n = enclave.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let (handshake, records) = buffer[..n].split_at(handshake_left.min(n));
        handshake_left -= handshake.len();
        if !handshake.is_empty() {
            ws.feed(Message::binary(handshake.to_vec())).await?;
        }
        for piece in records.chunks(settings.message_limit) {
            ws.feed(Message::binary(piece.to_vec())).await?;
        }
        ws.flush().await?;
    }
}
