//! N jobs by C callers: what succeeded, how long each took, what it cost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::jobs::Job;

#[derive(Default)]
pub struct Report {
    pub ok: u64,
    pub failed: u64,
    bytes: u64,
    wall: Duration,
    cpu: Duration,
    latencies: Vec<Duration>,
    errors: BTreeMap<String, u64>,
}

impl Report {
    fn add(&mut self, outcome: Result<u64, String>, took: Duration) {
        match outcome {
            Ok(bytes) => {
                self.ok += 1;
                self.bytes += bytes;
                self.latencies.push(took);
            }
            Err(why) => {
                self.failed += 1;
                *self.errors.entry(why).or_default() += 1;
            }
        }
    }

    fn merge(&mut self, other: Report) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.bytes += other.bytes;
        self.latencies.extend(other.latencies);
        for (why, n) in other.errors {
            *self.errors.entry(why).or_default() += n;
        }
    }

    /// Nearest rank; the latencies must be sorted.
    fn percentile(&self, percent: usize) -> Option<u128> {
        let rank = (self.latencies.len() * percent).div_ceil(100);
        self.latencies
            .get(rank.saturating_sub(1))
            .map(Duration::as_micros)
    }

    pub fn to_json(&self) -> String {
        serde_json::json!({
            "ok": self.ok,
            "failed": self.failed,
            "bytes": self.bytes,
            "wall_s": self.wall.as_secs_f64(),
            "cpu_s": self.cpu.as_secs_f64(),
            "p50_us": self.percentile(50),
            "p99_us": self.percentile(99),
            "errors": self.errors,
        })
        .to_string()
    }
}

pub async fn drive(job: &Arc<Job>, count: u64, callers: u64) -> Report {
    let next = Arc::new(AtomicU64::new(0));
    let (started, cpu_before) = (Instant::now(), cpu_time());
    let tasks: Vec<_> = (0..callers.max(1))
        .map(|_| tokio::spawn(caller(job.clone(), next.clone(), count)))
        .collect();
    let mut report = Report::default();
    for task in tasks {
        report.merge(task.await.expect("caller panicked"));
    }
    report.wall = started.elapsed();
    report.cpu = cpu_time().saturating_sub(cpu_before);
    report.latencies.sort_unstable();
    report
}

async fn caller(job: Arc<Job>, next: Arc<AtomicU64>, count: u64) -> Report {
    let mut report = Report::default();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= count {
            return report;
        }
        let started = Instant::now();
        let outcome = job.run(index).await;
        report.add(outcome, started.elapsed());
    }
}

/// User and system time of this process so far.
fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for writes of one rusage, and zeroed is a valid rusage.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let span = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    span(usage.ru_utime) + span(usage.ru_stime)
}
