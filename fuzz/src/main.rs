//! The fuzzer that runs everywhere: inputs are made from a seed, damaged, and run, so many times or so long.
//!
//! `fuzz [--runs N] [--seconds N] [--seed N] [--jobs N] [TARGET...]`, or `fuzz --input FILE TARGET` to run one input again.

use pg_ambassador_fuzz::conversation::Random;
use pg_ambassador_fuzz::mutate::mutate;
use pg_ambassador_fuzz::{TARGETS, Target};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// An execution that takes longer than this hangs.
const HANG: Duration = Duration::from_secs(20);
/// Executions between two looks at the clock.
const ROUND: u64 = 1000;

struct Options {
    runs: u64,
    seconds: u64,
    seed: u64,
    jobs: u64,
    input: Option<String>,
    targets: Vec<&'static Target>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { runs: u64::MAX, seconds: u64::MAX, seed: 1, jobs: 1, input: None, targets: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse().ok()).ok_or(format!("{word} needs a number"));
        match word.as_str() {
            "--runs" => options.runs = number()?,
            "--seconds" => options.seconds = number()?,
            "--seed" => options.seed = number()?,
            "--jobs" => options.jobs = number()?.max(1),
            "--input" => options.input = Some(words.next().ok_or("--input needs a file")?),
            name => {
                let found = TARGETS.iter().find(|target| target.name == name);
                let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
                options.targets.push(found.ok_or(format!("{name}: the targets are {}", names.join(", ")))?);
            }
        }
    }
    if options.targets.is_empty() {
        options.targets = TARGETS.iter().collect();
    }
    if (options.runs, options.seconds) == (u64::MAX, u64::MAX) {
        options.seconds = 5;
    }
    Ok(options)
}

/// What one thread is doing: when its execution began, in milliseconds, and which it is.
#[derive(Default)]
struct Doing {
    since: AtomicU64,
    run: AtomicU64,
}

/// Runs a target; the input of the first execution that panics is the error.
fn fuzz(target: &Target, options: &Options) -> Result<(u64, Duration), (u64, Vec<u8>)> {
    let (start, failed, done) = (Instant::now(), AtomicBool::new(false), AtomicBool::new(false));
    let doing: Vec<Doing> = (0..options.jobs).map(|_| Doing::default()).collect();
    let input = |run: u64| {
        let mut random = Random::new(options.seed.wrapping_mul(0x9e37_79b9).wrapping_add(run));
        let mut data = (target.seed)(&mut random);
        if !random.one_in(8) {
            mutate(&mut random, &mut data);
        }
        data
    };
    let worker = |job: u64| {
        let mut run = job;
        let mut count = 0;
        while run < options.runs && !failed.load(Ordering::Relaxed) {
            let now = start.elapsed();
            if count % ROUND == 0 && now.as_secs() >= options.seconds {
                break;
            }
            if count % ROUND == 0 {
                doing[usize::try_from(job).unwrap_or(0)]
                    .since
                    .store(u64::try_from(now.as_millis()).unwrap_or(0), Ordering::Relaxed);
            }
            doing[usize::try_from(job).unwrap_or(0)].run.store(run, Ordering::Relaxed);
            let data = input(run);
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&data))).is_err() {
                failed.store(true, Ordering::Relaxed);
                return Err((run, data));
            }
            count += 1;
            run += options.jobs;
        }
        Ok(count)
    };
    let result = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs).map(|job| scope.spawn(move || worker(job))).collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                for doing in &doing {
                    let since = Duration::from_millis(doing.since.load(Ordering::Relaxed));
                    let round = start.elapsed().saturating_sub(since);
                    if round > HANG.saturating_mul(10) {
                        let run = doing.run.load(Ordering::Relaxed);
                        eprintln!("{}: execution {run} of seed {} hangs", target.name, options.seed);
                        std::process::exit(2);
                    }
                }
            }
        });
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("panics are caught")).collect();
        done.store(true, Ordering::Relaxed);
        results
    });
    let count = result.into_iter().sum::<Result<u64, _>>()?;
    Ok((count, start.elapsed()))
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if let Some(path) = &options.input {
        let data = std::fs::read(path).expect("the input can be read");
        options.targets.iter().for_each(|target| (target.run)(&data));
        println!("no panic");
        return ExitCode::SUCCESS;
    }
    for target in &options.targets {
        match fuzz(target, &options) {
            Ok((count, took)) => {
                let rate = u128::from(count) * 1000 / took.as_millis().max(1);
                println!("{:<12} {count:>10} executions, {rate:>7}/s, no panic", target.name);
            }
            Err((run, data)) => {
                let path = format!("fuzz-{}-{run}.input", target.name);
                let kept = std::fs::write(&path, &data).is_ok();
                println!("{:<12} PANIC at execution {run} of seed {}", target.name, options.seed);
                println!(
                    "{}",
                    if kept {
                        format!("run it again with: fuzz --input {path} {}", target.name)
                    } else {
                        data.escape_ascii().to_string()
                    }
                );
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
