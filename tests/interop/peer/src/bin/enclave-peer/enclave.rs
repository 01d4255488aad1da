//! The loop inside the enclave, one per connection. It drops a half-read record whenever an answer
//! is ready first: `CborTransport::receive` loses what it has read when `select!` cancels it. That
//! is how the real server behaves, and the reason this peer exists.

use std::collections::HashMap;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use enclavia_protocol::attestation::test_utils::FakeControlNonceAttestation;
use enclavia_protocol::{
    perform_cbor_handshake_as_responder, CborTransport, ClientMessage, ServerMessage, StreamHalf,
};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio::task::coop::has_budget_remaining;

use crate::workload::Command;
use crate::Enclave;

const MAX_IN_FLIGHT: usize = 64;

pub enum Document {
    /// COSE_Sign1 with a meaningless signature; PCRs are the seed and its two successors, 48 times.
    SelfSigned { seed: u8 },
    /// The 32 bytes of the handshake hash.
    Stub,
}

impl Document {
    fn for_channel(&self, binding: &[u8], control_nonce: [u8; 32]) -> Vec<u8> {
        match self {
            Document::Stub => binding.to_vec(),
            Document::SelfSigned { seed } => {
                FakeControlNonceAttestation::with_seed(*seed, binding.to_vec(), control_nonce)
                    .encode()
            }
        }
    }
}

struct Session {
    enclave: Arc<Enclave>,
    transport: CborTransport<UnixStream>,
    binding: Vec<u8>,
    answers: mpsc::Sender<ServerMessage>,
    finished: mpsc::Sender<u64>,
    slots: Arc<Semaphore>,
    streams: HashMap<u64, mpsc::Sender<Command>>,
}

/// One of the connection's, counted while it is taken.
struct Slot {
    _permit: OwnedSemaphorePermit,
    enclave: Arc<Enclave>,
}

impl Slot {
    fn new(permit: OwnedSemaphorePermit, enclave: Arc<Enclave>) -> Self {
        enclave.count_slot_taken();
        Slot {
            _permit: permit,
            enclave,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.enclave.count_slot_freed();
    }
}

enum Event {
    Received(Result<ClientMessage, String>),
    Answer(ServerMessage),
    Finished(u64),
}

/// The error is the reason for hanging up.
pub async fn session(enclave: Arc<Enclave>, socket: UnixStream) -> Result<(), String> {
    let (transport, binding) = handshake(socket).await?;
    let (answers, answer_queue) = mpsc::channel(MAX_IN_FLIGHT);
    let (finished, finished_queue) = mpsc::channel(MAX_IN_FLIGHT);
    let counters = enclave.clone();
    let session = Session {
        enclave,
        transport,
        binding,
        answers,
        finished,
        slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
        streams: HashMap::new(),
    };
    let mut running = pin!(session.run(answer_queue, finished_queue));
    poll_fn(move |context| {
        let polled = running.as_mut().poll(context);
        if !has_budget_remaining() {
            counters.count_out_of_steps();
        }
        polled
    })
    .await
}

async fn handshake(socket: UnixStream) -> Result<(CborTransport<UnixStream>, Vec<u8>), String> {
    perform_cbor_handshake_as_responder(socket)
        .await
        .map_err(|e| format!("handshake: {e}"))
}

/// The crate's errors are not `Send`, and no more than their text is needed.
async fn receive(
    transport: &mut CborTransport<UnixStream>,
    idle: Option<Duration>,
) -> Result<ClientMessage, String> {
    let next = async {
        transport
            .receive::<ClientMessage>()
            .await
            .map_err(|e| e.to_string())
    };
    match idle {
        None => next.await,
        Some(limit) => tokio::time::timeout(limit, next)
            .await
            .unwrap_or_else(|_| Err("idle timeout".to_string())),
    }
}

impl Session {
    async fn run(
        mut self,
        mut answer_queue: mpsc::Receiver<ServerMessage>,
        mut finished_queue: mpsc::Receiver<u64>,
    ) -> Result<(), String> {
        loop {
            // An open stream may be silent for hours, an idle connection may not.
            let idle = self.streams.is_empty().then_some(self.enclave.idle);
            let event = tokio::select! {
                message = receive(&mut self.transport, idle) => Event::Received(message),
                Some(answer) = answer_queue.recv() => Event::Answer(answer),
                Some(id) = finished_queue.recv() => Event::Finished(id),
            };
            match event {
                Event::Received(message) => self.handle(message?).await?,
                // One answer that does not fit a record costs the whole connection.
                Event::Answer(answer) => self.send(&answer).await?,
                Event::Finished(id) => drop(self.streams.remove(&id)),
            }
        }
    }

    async fn send(&mut self, message: &ServerMessage) -> Result<(), String> {
        self.transport
            .send(message)
            .await
            .map_err(|e| format!("send: {e}"))
    }

    /// Errors of a single request go into the same queue that the calling loop drains.
    async fn complain(&self, id: u64, message: &str) {
        let _ = self
            .answers
            .send(ServerMessage::Error {
                id,
                message: message.to_string(),
            })
            .await;
    }

    /// Blocks the loop, answers included, when all slots are taken.
    async fn slot(&self) -> Result<Slot, String> {
        let permit = self
            .slots
            .clone()
            .acquire_owned()
            .await
            .map_err(|e| e.to_string())?;
        Ok(Slot::new(permit, self.enclave.clone()))
    }

    async fn handle(&mut self, message: ClientMessage) -> Result<(), String> {
        match message {
            ClientMessage::RequestAttestation => self.attest().await,
            ClientMessage::GetControlNonce | ClientMessage::Control { .. } => {
                self.refuse_control().await
            }
            ClientMessage::Data { id, payload } => self.one_shot(id, payload).await,
            ClientMessage::OpenStream { id, payload } => self.open(id, payload).await,
            ClientMessage::StreamData { id, payload } => {
                self.write(id, payload).await;
                Ok(())
            }
            ClientMessage::StreamClose { id, half } => {
                self.close(id, half).await;
                Ok(())
            }
        }
    }

    async fn attest(&mut self) -> Result<(), String> {
        let control_nonce = [0u8; 32];
        let data = self
            .enclave
            .document
            .for_channel(&self.binding, control_nonce);
        if let Err(error) = self
            .send(&ServerMessage::Attestation {
                data,
                control_nonce,
            })
            .await
        {
            tracing::warn!(%error, "attestation not sent");
        }
        Ok(())
    }

    async fn refuse_control(&mut self) -> Result<(), String> {
        let refusal = ServerMessage::ControlResult {
            success: false,
            message: "not accepted on the public channel".to_string(),
        };
        let _ = self.send(&refusal).await;
        Err("control message on the public port".to_string())
    }

    async fn one_shot(&mut self, id: u64, request: Vec<u8>) -> Result<(), String> {
        let slot = self.slot().await?;
        let (workload, answers) = (self.enclave.workload.clone(), self.answers.clone());
        tokio::spawn(async move {
            let answer = workload.one_shot(id, request).await;
            let _ = answers.send(answer).await;
            drop(slot);
        });
        Ok(())
    }

    async fn open(&mut self, id: u64, first: Vec<u8>) -> Result<(), String> {
        let slot = self.slot().await?;
        let (commands, command_queue) = mpsc::channel(MAX_IN_FLIGHT);
        self.streams.insert(id, commands);
        let (workload, answers, finished) = (
            self.enclave.workload.clone(),
            self.answers.clone(),
            self.finished.clone(),
        );
        tokio::spawn(async move {
            workload.stream(id, first, answers, command_queue).await;
            let _ = finished.send(id).await;
            drop(slot);
        });
        Ok(())
    }

    async fn write(&mut self, id: u64, payload: Vec<u8>) {
        match self.streams.get(&id) {
            None => {
                tracing::warn!(id, "StreamData for an id that is not open");
                self.complain(id, "unknown stream id").await;
            }
            Some(stream) => {
                if stream.send(Command::Write(payload)).await.is_err() {
                    self.streams.remove(&id);
                }
            }
        }
    }

    async fn close(&mut self, id: u64, half: StreamHalf) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let pump_is_gone = stream.send(Command::Close(half)).await.is_err();
        if pump_is_gone || half == StreamHalf::Both {
            self.streams.remove(&id);
        }
    }
}
