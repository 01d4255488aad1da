//! The TCP side: one-shot requests and byte streams to the workload.

use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use enclavia_protocol::{ServerMessage, StreamHalf};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

const REDIAL_EVERY: Duration = Duration::from_millis(250);
const ONE_SHOT_LIMIT: Duration = Duration::from_secs(60);
const READ_CHUNK: usize = 16 * 1024;

pub struct Workload {
    address: String,
    grace: Duration,
    seen_up: AtomicBool,
}

pub enum Command {
    Write(Vec<u8>),
    Close(StreamHalf),
}

impl Workload {
    pub fn new(address: String, grace: Duration) -> Self {
        Workload {
            address,
            grace,
            seen_up: AtomicBool::new(false),
        }
    }

    /// Until the workload has been seen once, a refused connection is only "not yet".
    async fn dial(&self) -> Result<TcpStream, Error> {
        let give_up = Instant::now() + self.grace;
        loop {
            let error = match TcpStream::connect(&self.address).await {
                Ok(tcp) => {
                    // What a client sends in small pieces reaches the workload as it comes.
                    tcp.set_nodelay(true)?;
                    self.seen_up.store(true, Ordering::Relaxed);
                    return Ok(tcp);
                }
                Err(error) => error,
            };
            let booting = error.kind() == ErrorKind::ConnectionRefused
                && !self.seen_up.load(Ordering::Relaxed);
            if !booting || Instant::now() + REDIAL_EVERY > give_up {
                return Err(error);
            }
            tokio::time::sleep(REDIAL_EVERY).await;
        }
    }

    /// No half-close after the request: some workloads take our FIN for an abort.
    pub async fn one_shot(&self, id: u64, request: Vec<u8>) -> ServerMessage {
        let exchange = async {
            let mut tcp = self.dial().await?;
            tcp.write_all(&request).await?;
            let mut response = Vec::new();
            match tokio::time::timeout(ONE_SHOT_LIMIT, tcp.read_to_end(&mut response)).await {
                Ok(read) => read.map(|_| response),
                Err(_) => Err(Error::new(
                    ErrorKind::TimedOut,
                    "no end of response within 60s",
                )),
            }
        };
        match exchange.await {
            Ok(payload) => ServerMessage::Data { id, payload },
            Err(error) => failure(id, error),
        }
    }

    /// One stream, until the client closes it or a side fails. It outlives the workload's EOF:
    /// only the client frees the slot.
    pub async fn stream(
        &self,
        id: u64,
        first: Vec<u8>,
        answers: mpsc::Sender<ServerMessage>,
        commands: mpsc::Receiver<Command>,
    ) {
        let opened = async {
            let mut tcp = self.dial().await?;
            tcp.write_all(&first).await?;
            Ok(tcp)
        };
        let ended = match opened.await {
            Ok(tcp) => Pump::new(id, tcp, &answers, commands).run().await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            let _ = answers.send(failure(id, error)).await;
        }
    }
}

fn failure(id: u64, error: Error) -> ServerMessage {
    ServerMessage::Error {
        id,
        message: error.to_string(),
    }
}

/// Both directions in one task: while it waits for room in one, the other stands still.
struct Pump<'a> {
    id: u64,
    reader: ReadHalf<TcpStream>,
    writer: WriteHalf<TcpStream>,
    answers: &'a mpsc::Sender<ServerMessage>,
    commands: mpsc::Receiver<Command>,
    at_eof: bool,
}

impl<'a> Pump<'a> {
    fn new(
        id: u64,
        tcp: TcpStream,
        answers: &'a mpsc::Sender<ServerMessage>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let (reader, writer) = tokio::io::split(tcp);
        Pump {
            id,
            reader,
            writer,
            answers,
            commands,
            at_eof: false,
        }
    }

    async fn run(mut self) -> Result<(), Error> {
        let mut buffer = vec![0u8; READ_CHUNK];
        loop {
            tokio::select! {
                read = self.reader.read(&mut buffer), if !self.at_eof => {
                    if !self.forward(&buffer[..read?]).await {
                        return Ok(());
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Write(bytes)) => self.writer.write_all(&bytes).await?,
                    // A workload that is gone already has no use for our FIN.
                    Some(Command::Close(StreamHalf::Write)) => drop(self.writer.shutdown().await),
                    Some(Command::Close(StreamHalf::Both)) | None => return Ok(()),
                },
            }
        }
    }

    /// False when the connection behind this stream is gone.
    async fn forward(&mut self, bytes: &[u8]) -> bool {
        self.at_eof = bytes.is_empty();
        let message = match bytes {
            [] => ServerMessage::StreamClose { id: self.id },
            _ => ServerMessage::StreamData {
                id: self.id,
                payload: bytes.to_vec(),
            },
        };
        self.answers.send(message).await.is_ok() || self.at_eof
    }
}
