//! The published Rust client as a program: does one thing N times, prints one JSON line.
//! Debug mode, for peers that sign their own documents, unless told --production.

mod jobs;
mod measure;

use interop_peer::{Args, DEFAULT_SEED};

use jobs::{Job, Target};
use measure::Report;

const USAGE: &str = "reference-client COMMAND URL [PATH] [--count N] [--concurrency C] [--warmup N]
    get URL PATH        one-shot GET
    post URL PATH       one-shot POST of --size random bytes; --answer echo (default) or any
    connect URL         connect, handshake and verify
    verify FILE         a document as connecting does, with --nonce HEX for the handshake's hash
    download URL PATH   GET over a stream, checked against x-sha256; --no-hash drops what it reads instead
    upload URL PATH     POST of --size bytes over a stream in records of --chunk, whose hash must be answered;
                        --beside N callers of GET /health meanwhile
    upgrade URL PATH    WebSocket inside the tunnel, one echoed message of --size bytes
common: --production; --pcr-seed 0..255 or --pcrs HEX,HEX,HEX; --header 'Name: value' for the outer upgrade";

fn unhex(digits: &str) -> Result<Vec<u8>, String> {
    if digits.len() % 2 != 0 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err("--nonce: expected pairs of hexadecimal digits".to_string());
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|e| e.to_string()))
        .collect()
}

fn target(args: &Args, url: &str, path: &str) -> Result<Target, String> {
    let seed: u8 = args.number("pcr-seed", DEFAULT_SEED)?;
    let pcrs = match args
        .text("pcrs")
        .map(|text| text.split(',').collect::<Vec<_>>())
    {
        None => enclavia::Pcrs {
            pcr0: vec![seed; 48],
            pcr1: vec![seed.wrapping_add(1); 48],
            pcr2: vec![seed.wrapping_add(2); 48],
        },
        Some(hex) => match hex[..] {
            [a, b, c] => enclavia::Pcrs::from_hex(a, b, c).map_err(|e| e.to_string())?,
            _ => return Err("--pcrs: expected three values, comma between".to_string()),
        },
    };
    let header = match args
        .text("header")
        .map(|h| h.split_once(':').ok_or("--header: no colon"))
    {
        None => None,
        Some(pair) => {
            pair.map(|(name, value)| Some((name.trim().to_string(), value.trim().to_string())))?
        }
    };
    Ok(Target {
        url: url.to_string(),
        path: path.to_string(),
        pcrs,
        production: args.switch("production"),
        nonce: unhex(args.text("nonce").unwrap_or_default())?,
        header,
        size: args.number("size", 1000)?,
        chunk: args.number("chunk", 16 * 1024)?,
        echo: match args.text("answer") {
            None | Some("echo") => true,
            Some("any") => false,
            Some(other) => return Err(format!("--answer: echo or any, not {other:?}")),
        },
        hash: !args.switch("no-hash"),
        beside: args.number("beside", 0)?,
    })
}

async fn run() -> Result<Report, String> {
    let args = Args::parse(
        std::env::args().skip(1),
        &[
            "count",
            "concurrency",
            "warmup",
            "size",
            "chunk",
            "beside",
            "answer",
            "pcr-seed",
            "pcrs",
            "header",
            "nonce",
        ],
        &["no-hash", "production"],
    )?;
    let words: Vec<&str> = args.positional.iter().map(String::as_str).collect();
    let (command, url, path) = match words[..] {
        [command @ ("connect" | "verify"), url] => (command, url, ""),
        [command, url, path] => (command, url, path),
        _ => return Err(USAGE.to_string()),
    };
    let count = args.number("count", 1)?;
    let concurrency = args.number("concurrency", 1)?;
    let warmup = args.number("warmup", 1)?;

    let job = Job::new(command, target(&args, url, path)?).await?;
    if warmup > 0 {
        let warm = measure::drive(&job, warmup, concurrency).await;
        if warm.ok == 0 {
            return Ok(warm);
        }
    }
    Ok(measure::drive(&job, count, concurrency).await)
}

#[tokio::main]
async fn main() {
    match run().await {
        Ok(report) => {
            println!("{}", report.to_json());
            std::process::exit(i32::from(report.failed > 0));
        }
        Err(why) => {
            println!("{}", serde_json::json!({"fatal": why}));
            std::process::exit(2);
        }
    }
}
