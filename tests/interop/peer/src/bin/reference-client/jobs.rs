//! What can be done with the published client. Each job answers the body bytes it moved.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use enclavia::{Client, Method, Pcrs};
use enclavia_protocol::attestation::verify_against;
use futures_util::{SinkExt, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::WebSocketStream;

const READ_BLOCK: usize = 64 * 1024;

pub struct Target {
    pub url: String,
    pub path: String,
    pub pcrs: Pcrs,
    pub production: bool,
    pub nonce: Vec<u8>,
    pub header: Option<(String, String)>,
    pub size: usize,
    pub chunk: usize,
    pub echo: bool,
    pub hash: bool,
    /// Callers of small GETs on the same connection, for as long as an upload takes.
    pub beside: usize,
}

impl Target {
    async fn connect(&self) -> Result<Client, String> {
        let mut builder = Client::builder(&self.url)
            .pcrs(self.pcrs.clone())
            .debug_mode(!self.production);
        if let Some((name, value)) = &self.header {
            builder = builder.header(name, value);
        }
        builder.build().await.map_err(text)
    }
}

pub enum Job {
    Connect(Target),
    Verify(Target, Vec<u8>),
    Get(Target, Client),
    Post(Target, Client, Vec<u8>),
    Download(Target, Client),
    Upload(Target, Client, Upload),
    Upgrade(Target, Client, Vec<u8>),
}

/// A body and the hash that must come back.
pub struct Upload {
    body: Vec<u8>,
    digest: String,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn random(size: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0u8; size];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(text)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bodies of one run differ in their first bytes, or a mixed-up answer would go unseen.
fn stamped(body: &[u8], index: u64) -> Vec<u8> {
    let mut body = body.to_vec();
    let stamp = index.to_le_bytes();
    let n = stamp.len().min(body.len());
    body[..n].copy_from_slice(&stamp[..n]);
    body
}

impl Job {
    pub async fn new(command: &str, target: Target) -> Result<Arc<Job>, String> {
        match command {
            "connect" => return Ok(Arc::new(Job::Connect(target))),
            "verify" => {
                let document = std::fs::read(&target.url).map_err(text)?;
                return Ok(Arc::new(Job::Verify(target, document)));
            }
            _ => {}
        }
        let client = target.connect().await?;
        let body = random(target.size)?;
        Ok(Arc::new(match command {
            "get" => Job::Get(target, client),
            "post" => Job::Post(target, client, body),
            "download" => Job::Download(target, client),
            "upload" => {
                let digest = hex(&Sha256::digest(&body));
                Job::Upload(target, client, Upload { body, digest })
            }
            "upgrade" => Job::Upgrade(target, client, body),
            other => return Err(format!("unknown command {other:?}")),
        }))
    }

    pub async fn run(&self, index: u64) -> Result<u64, String> {
        match self {
            Job::Connect(target) => target.connect().await.map(|_| 0),
            Job::Verify(target, document) => verify(target, document),
            Job::Get(target, client) => get(&target.path, client).await,
            Job::Post(target, client, body) => post(target, client, stamped(body, index)).await,
            Job::Download(target, client) => download(target, client).await,
            Job::Upload(target, client, upload) => upload_beside(target, client, upload).await,
            Job::Upgrade(target, client, body) => {
                upgrade(target, client, stamped(body, index)).await
            }
        }
    }
}

/// What connecting calls for the document it got, where the handshake's hash is the nonce.
fn verify(target: &Target, document: &[u8]) -> Result<u64, String> {
    verify_against(document, &target.nonce, &target.pcrs, !target.production)
        .map(|()| document.len() as u64)
        .map_err(text)
}

async fn get(path: &str, client: &Client) -> Result<u64, String> {
    let response = client.get(path).send().await.map_err(text)?;
    match response.status() {
        200 => Ok(response.bytes().len() as u64),
        status => Err(format!("status {status}")),
    }
}

async fn post(target: &Target, client: &Client, body: Vec<u8>) -> Result<u64, String> {
    let response = client
        .post(&target.path)
        .body(body.clone())
        .send()
        .await
        .map_err(text)?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status()));
    }
    if target.echo && response.bytes() != body {
        return Err(format!(
            "no echo: sent {} bytes, got {}",
            body.len(),
            response.bytes().len()
        ));
    }
    Ok(body.len() as u64)
}

/// A response read to EOF, taken apart just far enough for the checks here.
struct RawResponse {
    head: String,
    body: Vec<u8>,
}

impl RawResponse {
    fn parse(mut raw: Vec<u8>) -> Result<Self, String> {
        let end = raw
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .ok_or_else(|| format!("no response head in {} bytes", raw.len()))?;
        let body = raw.split_off(end + 4);
        let response = RawResponse {
            head: String::from_utf8_lossy(&raw).to_lowercase(),
            body,
        };
        match response.head.split(' ').nth(1) {
            Some("200") => Ok(response),
            other => Err(format!("status {}", other.unwrap_or("missing"))),
        }
    }

    fn check_length(&self, length: usize) -> Result<(), String> {
        match self.header("content-length") {
            Some(announced) if announced != length.to_string() => {
                Err("body does not have the announced length".to_string())
            }
            _ => Ok(()),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines
            .into_iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.trim())
    }
}

async fn download(target: &Target, client: &Client) -> Result<u64, String> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\n\r\n",
        target.path
    );
    let mut stream = client
        .open_stream(request.into_bytes())
        .await
        .map_err(text)?;
    if !target.hash {
        return read_and_drop(&mut stream).await;
    }
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).await.map_err(text)?;
    let response = RawResponse::parse(raw)?;
    response.check_length(response.body.len())?;
    if response.header("x-sha256") != Some(hex(&Sha256::digest(&response.body)).as_str()) {
        return Err("body does not have the announced hash".to_string());
    }
    Ok(response.body.len() as u64)
}

/// No more of the body is held than one block: what is measured is the client.
async fn read_and_drop(stream: &mut (impl AsyncRead + Unpin)) -> Result<u64, String> {
    let mut block = vec![0u8; READ_BLOCK];
    let mut raw = Vec::new();
    while !raw.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut block).await.map_err(text)? {
            0 => break,
            n => raw.extend_from_slice(&block[..n]),
        }
    }
    let response = RawResponse::parse(raw)?;
    let mut length = response.body.len();
    loop {
        match stream.read(&mut block).await.map_err(text)? {
            0 => break,
            n => length += n,
        }
    }
    response.check_length(length)?;
    Ok(length as u64)
}

/// Fails also where one of the requests beside it did.
async fn upload_beside(target: &Target, client: &Client, upload: &Upload) -> Result<u64, String> {
    let done = Arc::new(AtomicBool::new(false));
    let mut others = JoinSet::new();
    for _ in 0..target.beside {
        let (client, done) = (client.clone(), done.clone());
        others.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                get("/health", &client).await?;
            }
            Ok::<(), String>(())
        });
    }
    let outcome = upload_once(target, client, upload).await;
    done.store(true, Ordering::Relaxed);
    while let Some(ended) = others.join_next().await {
        ended
            .map_err(text)?
            .map_err(|why| format!("beside it: {why}"))?;
    }
    outcome
}

async fn upload_once(target: &Target, client: &Client, upload: &Upload) -> Result<u64, String> {
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: enclave\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        target.path,
        upload.body.len()
    );
    let mut stream = client.open_stream(head.into_bytes()).await.map_err(text)?;
    for piece in upload.body.chunks(target.chunk) {
        stream.write_all(piece).await.map_err(text)?;
    }
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).await.map_err(text)?;
    let response = RawResponse::parse(raw)?;
    if !String::from_utf8_lossy(&response.body).contains(&upload.digest) {
        return Err("the answer does not contain the body's hash".to_string());
    }
    Ok(upload.body.len() as u64)
}

async fn upgrade(target: &Target, client: &Client, body: Vec<u8>) -> Result<u64, String> {
    let headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()));
    let stream = client
        .upgrade(Method::Get, &target.path, &headers)
        .await
        .map_err(text)?;
    let mut ws = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    ws.send(Message::binary(body.clone())).await.map_err(text)?;
    match ws.next().await {
        Some(Ok(Message::Binary(answer))) if answer == body => {}
        Some(Ok(other)) => return Err(format!("no echo: {} bytes", other.len())),
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err("closed before the echo".to_string()),
    }
    ws.close(None).await.map_err(text)?;
    Ok(body.len() as u64)
}
