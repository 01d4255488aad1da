//! Chains of upgrades made, and judged, by the published crate.
//!
//!     upgrade-chain make       prints {"enclave_id", "row", "links", "pcrs"}: a chain with one upgrade
//!                              that boots, and one that is revoked, in debug documents
//!     upgrade-chain validate   reads {"row", "links", "debug"} and prints what the crate makes of it

use std::io::Read;

use base64::Engine as _;
use chrono::{DateTime, TimeZone, Utc};
use enclavia_protocol::attestation::test_utils::FakeChainAttestation;
use enclavia_protocol::chain::{
    BootPayload, ChainLinkJson, ChainLinkKind, EnclaveChainRow, PcrsHex, RecordedLink,
    RevocationPayload, UpgradePayload, validate_chain,
};
use p256::ecdsa::{Signature, SigningKey, signature::Signer};
use serde_json::{Value, json};
use uuid::Uuid;

fn pcrs(seed: u8) -> PcrsHex {
    let hexed = |byte: u8| hex::encode([byte; 48]);
    PcrsHex {
        pcr0: hexed(seed),
        pcr1: hexed(seed + 1),
        pcr2: hexed(seed + 2),
    }
}

fn encoded<T: serde::Serialize>(payload: &T) -> Vec<u8> {
    let mut out = Vec::new();
    ciborium::into_writer(payload, &mut out).expect("a payload is CBOR");
    out
}

struct Chain {
    key: SigningKey,
    links: Vec<Value>,
}

impl Chain {
    fn add(&mut self, kind: ChainLinkKind, payload: Vec<u8>, by: u8) -> Uuid {
        let b64 = base64::engine::general_purpose::STANDARD;
        let id = Uuid::from_u128(self.links.len() as u128 + 1);
        let signature = (kind != ChainLinkKind::Boot).then(|| {
            let signature: Signature = self.key.sign(&payload);
            b64.encode(signature.to_bytes())
        });
        let link = ChainLinkJson {
            id: Some(id),
            kind,
            sequence: Some(self.links.len() as i64),
            payload: b64.encode(&payload),
            attestation: b64.encode(FakeChainAttestation::for_payload(by, &payload).encode()),
            signature,
            created_at: Some(at(self.links.len() as i64)),
        };
        self.links.push(serde_json::to_value(link).expect("a link is JSON"));
        id
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    Utc.timestamp_opt(seconds, 0).single().expect("a time")
}

fn make() -> Value {
    let enclave_id = Uuid::from_u128(0xe2c1);
    let key = SigningKey::from_slice(&[7; 32]).expect("a key");
    let public = key.verifying_key().to_encoded_point(false).as_bytes().to_vec();
    let mut chain = Chain { key, links: Vec::new() };
    let boot = |seed: u8, digest: &str| {
        encoded(&BootPayload {
            enclave_id,
            image_digest: digest.into(),
            pcrs: pcrs(seed),
            booted_at: at(1),
            nonce: vec![seed; 32],
        })
    };
    // Debug documents state the time 0, so what is to boot is valid from then on.
    let upgrade = |from: u8, to: u8, digest: &str, valid_from: i64| {
        encoded(&UpgradePayload {
            enclave_id,
            from_pcrs: pcrs(from),
            to_pcrs: pcrs(to),
            image_digest: digest.into(),
            valid_from: at(valid_from),
            issued_at: at(0),
            nonce: vec![to; 32],
        })
    };
    chain.add(ChainLinkKind::Boot, boot(0x10, "sha256:one"), 0x10);
    let staged = chain.add(
        ChainLinkKind::Upgrade,
        upgrade(0x10, 0x30, "sha256:three", 4_000_000_000),
        0x10,
    );
    let revocation = encoded(&RevocationPayload {
        enclave_id,
        revokes: staged,
        issued_at: at(0),
        nonce: vec![9; 32],
    });
    chain.add(ChainLinkKind::Revocation, revocation, 0x10);
    chain.add(ChainLinkKind::Upgrade, upgrade(0x10, 0x20, "sha256:two", 0), 0x10);
    chain.add(ChainLinkKind::Boot, boot(0x20, "sha256:two"), 0x20);
    json!({
        "enclave_id": enclave_id,
        "pcrs": pcrs(0x10),
        "final_pcrs": pcrs(0x20),
        "row": {
            "pcrs": pcrs(0x20),
            "image_digest": "sha256:two",
            "control_public_key": public,
            "upgradable": true,
        },
        "links": chain.links,
    })
}

fn validate(given: &Value) -> Value {
    let row: EnclaveChainRow = match serde_json::from_value(given["row"].clone()) {
        Ok(row) => row,
        Err(error) => return json!({"error": error.to_string()}),
    };
    let links: Vec<ChainLinkJson> = match serde_json::from_value(given["links"].clone()) {
        Ok(links) => links,
        Err(error) => return json!({"error": error.to_string()}),
    };
    let links: Result<Vec<RecordedLink>, _> = links.iter().map(|l| l.into_recorded_link()).collect();
    let links = match links {
        Ok(links) => links,
        Err(error) => return json!({"error": error.to_string()}),
    };
    let walk = validate_chain(
        &links,
        &row.pcrs,
        &row.image_digest,
        row.control_public_key.as_deref(),
        row.upgradable,
        Utc::now(),
        given["debug"].as_bool().unwrap_or(true),
    );
    let outcomes: Vec<String> = walk
        .outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(_) => "ok".to_string(),
            Err(error) => error.to_string(),
        })
        .collect();
    json!({
        "outcomes": outcomes,
        "final_pcrs": walk.final_pcrs,
        "tip_matches_row": walk.tip_matches_row,
    })
}

fn main() {
    let answer = match std::env::args().nth(1).as_deref() {
        Some("make") => make(),
        Some("validate") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).expect("text");
            validate(&serde_json::from_str(&text).expect("JSON"))
        }
        _ => {
            eprintln!("expected make or validate");
            std::process::exit(2);
        }
    };
    println!("{answer}");
}
