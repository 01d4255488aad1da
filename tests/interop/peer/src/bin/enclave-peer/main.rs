//! A Rust enclave on loopback: WebSocket in front, the published protocol crate behind, a real
//! workload behind that. Behaves as the in-enclave server does, its traps included.
//!
//! stdin is the leash: EOF ends the program. The line `drop` cuts every connection, `stats` prints
//! one JSON line.

mod bridge;
mod enclave;
mod workload;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use interop_peer::{Args, DEFAULT_SEED};
use tokio::net::{TcpListener, UnixStream};
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::{mpsc, watch, Semaphore};

use enclave::Document;
use workload::Workload;

const USAGE: &str = "enclave-peer --workload HOST:PORT [--port N] [--seed 0..255] [--stub]
    [--idle-seconds S] [--grace-seconds S] [--ws-chunk N] [--bridge-chunk N] [--max-connections N]";

/// What all connections share.
pub struct Enclave {
    pub workload: Arc<Workload>,
    pub document: Document,
    pub idle: Duration,
    pub bridge: bridge::Settings,
    admitted: Semaphore,
    cut: watch::Sender<u64>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    open: AtomicU64,
    slots_open: AtomicU64,
    ended: Mutex<BTreeMap<String, u64>>,
    out_of_steps: AtomicU64,
}

impl Enclave {
    /// The runtime made a connection's loop let other tasks go first: if it was in the middle of a
    /// record and an answer is ready, the connection is about to be lost.
    fn count_out_of_steps(&self) {
        self.counters.out_of_steps.fetch_add(1, Ordering::Relaxed);
    }

    fn count_slot_taken(&self) {
        self.counters.slots_open.fetch_add(1, Ordering::Relaxed);
    }

    fn count_slot_freed(&self) {
        self.counters.slots_open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// Numbers in a reason ("Message too large: 3129...") would make every entry unique.
    fn count_end(&self, reason: &str) {
        let digits_out: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        *self
            .ended
            .lock()
            .expect("counters")
            .entry(digits_out)
            .or_default() += 1;
    }

    fn to_json(&self) -> String {
        serde_json::json!({
            "accepted": self.accepted.load(Ordering::Relaxed),
            "open": self.open.load(Ordering::Relaxed),
            "slots_open": self.slots_open.load(Ordering::Relaxed),
            "ended": *self.ended.lock().expect("counters"),
            "out_of_steps": self.out_of_steps.load(Ordering::Relaxed),
        })
        .to_string()
    }
}

fn settings() -> Result<(Enclave, u16), String> {
    let args = Args::parse(
        std::env::args().skip(1),
        &[
            "workload",
            "port",
            "seed",
            "idle-seconds",
            "grace-seconds",
            "ws-chunk",
            "bridge-chunk",
            "max-connections",
        ],
        &["stub"],
    )?;
    let cpus = std::thread::available_parallelism().map_or(4, |n| n.get());
    let seconds =
        |name, default| Ok::<_, String>(Duration::from_secs_f64(args.number(name, default)?));
    let seed = args.number("seed", DEFAULT_SEED)?;
    let bridge_chunk = args.number("bridge-chunk", 32 * 1024usize)?;
    let workload = args.text("workload").ok_or("--workload is required")?;
    if bridge_chunk == 0 {
        return Err("--bridge-chunk must be at least 1".to_string());
    }
    let enclave = Enclave {
        workload: Arc::new(Workload::new(
            workload.to_string(),
            seconds("grace-seconds", 60.0)?,
        )),
        document: if args.switch("stub") {
            Document::Stub
        } else {
            Document::SelfSigned { seed }
        },
        idle: seconds("idle-seconds", 30.0)?,
        bridge: bridge::Settings {
            chunk: bridge_chunk,
            message_limit: match args.number("ws-chunk", 0)? {
                0 => usize::MAX,
                n => n,
            },
        },
        admitted: Semaphore::new(args.number("max-connections", 2 * cpus)?),
        cut: watch::Sender::new(0),
        counters: Counters::default(),
    };
    Ok((enclave, args.number("port", 0)?))
}

fn main() {
    let (enclave, port) = settings().unwrap_or_else(|why| {
        eprintln!("{why}\n{USAGE}");
        std::process::exit(2);
    });
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let code = match runtime.block_on(serve(Arc::new(enclave), port)) {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("{why}");
            1
        }
    };
    std::process::exit(code);
}

async fn serve(enclave: Arc<Enclave>, port: u16) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut lines = stdin_lines();
    println!("listening {}", listener.local_addr()?.port());

    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (tcp, _) = accepted?;
                tokio::spawn(connection(enclave.clone(), tcp));
            }
            line = lines.recv() => match line.as_deref().map(str::trim) {
                None => return Ok(()),
                Some("drop") => enclave.cut.send_modify(|n| *n += 1),
                Some("stats") => println!("{}", enclave.counters.to_json()),
                Some(other) => eprintln!("unknown command {other:?}"),
            },
            _ = terminate.recv() => return Ok(()),
        }
    }
}

/// A plain thread, because tokio's stdin would keep the runtime from shutting down.
fn stdin_lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Router and enclave of one connection, joined by a socket pair: records have to pass through
/// real socket buffers, or they would never arrive in part.
async fn connection(enclave: Arc<Enclave>, tcp: tokio::net::TcpStream) {
    let mut cut = enclave.cut.subscribe();
    // The router adds no delay of its own to small messages.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let ws = match tokio_tungstenite::accept_async(tcp).await {
        Ok(ws) => ws,
        Err(error) => return tracing::warn!(%error, "upgrade failed"),
    };
    let Ok((router_end, enclave_end)) = UnixStream::pair() else {
        return tracing::error!("no socket pair");
    };
    enclave.counters.accepted.fetch_add(1, Ordering::Relaxed);
    enclave.counters.open.fetch_add(1, Ordering::Relaxed);

    tokio::spawn(admit(enclave.clone(), enclave_end));
    tokio::select! {
        () = bridge::run(ws, router_end, enclave.bridge) => {}
        _ = cut.changed() => {}
    }
    enclave.counters.open.fetch_sub(1, Ordering::Relaxed);
}

/// A connection beyond the limit is accepted but finds nobody to shake hands with until another ends.
async fn admit(enclave: Arc<Enclave>, socket: UnixStream) {
    let Ok(_permit) = enclave.admitted.acquire().await else {
        return;
    };
    let reason = match enclave::session(enclave.clone(), socket).await {
        Ok(()) => "closed".to_string(),
        Err(reason) => reason,
    };
    tracing::info!(%reason, "connection ended");
    enclave.counters.count_end(&reason);
}
