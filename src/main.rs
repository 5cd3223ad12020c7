//! Parse arguments, run, turn the result into an exit code.

use anyhow::{Context, Result, bail};
use clap::Parser;
use pg_ambassador::ambassador::{Ambassador, read_file};
use pg_ambassador::args::{Cli, Command, Hash, Healthcheck, Settings};
use pg_ambassador::auth::scram::Verifier;
use pg_ambassador::config::{self, Config, Sources};
use pg_ambassador::{demo, logs, random, route};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(settings) => run(&settings),
        Command::Check(settings) => check(&settings),
        Command::Demo(options) => demo::run(&options).map_err(Into::into),
        Command::Route(options) => match route::run(&options) {
            Ok(only_reads) if options.only_reads && !only_reads => return ExitCode::from(3),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        },
        Command::Healthcheck(options) => healthcheck(&options),
        #[cfg(feature = "aws")]
        Command::Token(options) => token(options),
        Command::Hash(options) => hash(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pg-ambassador: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that is written, from flags, environment and file.
fn sources(flags: Vec<(String, String)>, file: Option<PathBuf>) -> Result<Sources> {
    let mut env: std::collections::BTreeMap<String, String> =
        // Variables that are no text are not ours, and no reason to stop.
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("PG") || name == "HOME")
            .collect();
    let named = env.remove("PG_AMBASSADOR_CONFIG").map(PathBuf::from);
    let file = read_file(file.or(named)).map_err(anyhow::Error::msg)?;
    Ok(Sources { flags, env, file })
}

fn resolve(settings: &Settings) -> Result<(Config, Sources)> {
    let flags = settings.flags().map_err(anyhow::Error::msg)?;
    let sources = sources(flags, settings.config.clone())?;
    match config::resolve(&sources) {
        Ok(config) => Ok((config, sources)),
        Err(faults) => {
            for fault in &faults {
                eprintln!("{fault}");
            }
            match faults.len() {
                1 => bail!("the configuration has a fault"),
                n => bail!("the configuration has {n} faults"),
            }
        }
    }
}

fn run(settings: &Settings) -> Result<()> {
    let (config, sources) = resolve(settings)?;
    let log = logs::begin(&config.log);
    // The control thread: signals, maintenance, HTTP. Clients are served by the workers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ambassador = Ambassador::start(config, sources, log).await?;
        for address in &ambassador.addresses {
            tracing::info!(%address, "listening");
        }
        if let Some(address) = ambassador.admin_address {
            tracing::info!(%address, "serving metrics and health");
        }
        ambassador.run().await.context("cannot listen for signals")
    })
}

fn check(settings: &Settings) -> Result<()> {
    let (config, _) = resolve(settings)?;
    let mut out = std::io::stdout().lock();
    let width = config.settings.iter().map(|setting| setting.key.len()).max().unwrap_or(0);
    for setting in &config.settings {
        let place = setting.place.as_ref().map(|place| format!("  # {place}")).unwrap_or_default();
        writeln!(out, "{:width$} = {}{place}", setting.key, setting.value)?;
    }
    Ok(())
}

fn healthcheck(options: &Healthcheck) -> Result<()> {
    let address = match &options.admin_listen {
        Some(address) => address
            .parse()
            .ok()
            .with_context(|| format!("--admin-listen: {address:?} is no address: write ADDRESS:PORT"))?,
        None => {
            // Only where to ask is of interest: the rest of the configuration may need what is not here.
            let sources = sources(vec![("url".into(), "postgres://localhost".into())], options.config.clone())?;
            match config::resolve(&sources) {
                Ok(config) => config.admin_listen.context("admin_listen is off")?,
                Err(faults) => bail!("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
            }
        }
    };
    let patience = Duration::from_secs(5);
    let mut stream =
        TcpStream::connect_timeout(&address, patience).with_context(|| format!("nobody answers at {address}"))?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET /{} HTTP/1.0\r\n\r\n", options.check.trim_start_matches('/'))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer from {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    bail!("{}", body.trim())
}

/// Prints a token for RDS: whether it can be had, and what is in it, is the first thing to look at when a login fails.
#[cfg(feature = "aws")]
fn token(options: pg_ambassador::args::Token) -> Result<()> {
    use pg_ambassador::credentials::{Endpoint, aws};
    let named = options.region.or_else(|| Endpoint::region_of(&options.host).map(str::to_owned));
    let region = named.with_context(|| format!("{} names no region: say it with --region", options.host))?;
    let endpoint = Endpoint { host: options.host, port: options.port, region };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let keys = runtime.block_on(aws::fetch_keys(options.profile, endpoint.region.clone()));
    let keys = keys.map_err(anyhow::Error::msg)?;
    let token =
        aws::token(&endpoint, &options.user, &keys, std::time::SystemTime::now()).map_err(anyhow::Error::msg)?;
    writeln!(std::io::stdout(), "{}", token.expose())?;
    Ok(())
}

fn hash(options: &Hash) -> Result<()> {
    let iterations = NonZeroU32::new(options.iterations).filter(|i| i.get() <= 100_000);
    let iterations = iterations.context("--iterations: write a number from 1 to 100000")?;
    let mut password = String::new();
    std::io::stdin().read_line(&mut password).context("cannot read the password from standard input")?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    if password.is_empty() {
        bail!("the password is empty: write it to standard input, as in `printf %s secret | pg-ambassador hash`");
    }
    println!("{}", Verifier::new(password, &random::bytes::<16>(), iterations));
    Ok(())
}
