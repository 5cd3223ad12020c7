//! A throw-away PostgreSQL cluster: a primary and streaming replicas on free ports of this machine.
//!
//! Whatever ends this process - its own end, Ctrl-C, SIGKILL - ends the servers and removes their files too: a small
//! shell at the other end of a pipe notices that the pipe is closed, and cleans up.

use super::binaries::Binaries;
use std::fmt::Write as _;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The role that owns the cluster.
pub const SUPERUSER: &str = "postgres";

/// What a cluster should be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How many replicas follow the primary.
    pub replicas: usize,
    /// Settings of all servers, beyond those that make them quick to start.
    pub settings: Vec<(String, String)>,
    /// Lines for `pg_hba.conf`, in front of the one that trusts everybody on this machine.
    pub hba: Vec<String>,
    /// Files to put into the data directory before the first start, readable by the server alone.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Why a cluster could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        output: String,
    },
    /// The programs are where the servers' owner may not look.
    #[error(
        "PostgreSQL does not run as root, and its programs in {dir} cannot be run by another user: put them where \
         everybody may read, or start this as an ordinary user", dir = .dir.display()
    )]
    OutOfReach {
        /// Where they are.
        dir: PathBuf,
    },
    /// The system refused something.
    #[error("{what}: {error}")]
    System {
        /// What.
        what: String,
        /// Why.
        error: io::Error,
    },
}

/// A running cluster. Dropped, it is gone.
#[derive(Debug)]
pub struct Cluster {
    /// Its servers: the primary first.
    pub nodes: Vec<Node>,
    binaries: Binaries,
    dir: PathBuf,
    owner: Option<Owner>,
    cleaner: Child,
}

/// One server.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Its data directory.
    pub data: PathBuf,
}

/// The user the servers run as, where we are root: PostgreSQL refuses that.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn find() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = |name: &str| {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut ids = line.split(':').skip(2).map(str::parse);
            Some(Self { uid: ids.next()?.ok()?, gid: ids.next()?.ok()? })
        };
        user(SUPERUSER).or_else(|| user("nobody")).or(Some(Self { uid: 65_534, gid: 65_534 }))
    }
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A port that nothing uses right now.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
    let what = what.into();
    |error| ClusterError::System { what, error }
}

impl Cluster {
    /// Makes a cluster and waits until all its servers accept connections.
    pub fn start(binaries: &Binaries, options: &Options) -> Result<Self, ClusterError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pg-ambassador-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(system(dir.display().to_string()))?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).map_err(system("permissions"))?;
        let owner = Owner::find();
        if let Some(owner) = owner {
            std::os::unix::fs::chown(&dir, Some(owner.uid), Some(owner.gid)).map_err(system("chown"))?;
        }
        let cleaner = cleaner(binaries, &dir, owner).map_err(system("sh"))?;
        let mut cluster = Self { nodes: Vec::new(), binaries: binaries.clone(), dir, owner, cleaner };
        cluster.check_reach()?;
        cluster.make_primary(options)?;
        for _ in 0..options.replicas {
            cluster.add_replica()?;
        }
        Ok(cluster)
    }

    /// The PostgreSQL it runs on.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The primary's port.
    pub fn port(&self) -> u16 {
        self.nodes[0].port
    }

    /// A directory for files of whoever uses the cluster; removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that runs as the servers' owner, without what this process's environment says about PostgreSQL.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.path(program));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").stdin(Stdio::null()).current_dir(&self.dir);
        if let Some(owner) = self.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }

    /// Whether the servers' owner can run the programs: not where they are in somebody's home directory.
    fn check_reach(&self) -> Result<(), ClusterError> {
        match self.command("postgres").arg("--version").output() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && self.owner.is_some() => {
                Err(ClusterError::OutOfReach { dir: self.binaries.dir().to_owned() })
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<(), ClusterError> {
        let output = self.command(program).args(args).output().map_err(system(program))?;
        if output.status.success() {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].concat();
        Err(ClusterError::Program { program: program.into(), output: String::from_utf8_lossy(&text).into_owned() })
    }

    fn make_primary(&mut self, options: &Options) -> Result<(), ClusterError> {
        let data = self.dir.join("primary");
        let path = data.to_string_lossy().into_owned();
        self.run("initdb", &["-D", &path, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])?;
        let mut text = String::from(
            "listen_addresses = '127.0.0.1'\nfsync = off\nfull_page_writes = off\nmax_connections = 300\n\
             shared_buffers = 32MB\nwal_level = logical\nmax_wal_senders = 20\nwal_keep_size = 512MB\n\
             hot_standby = on\nmax_prepared_transactions = 20\nlog_min_messages = warning\nlog_connections = off\n",
        );
        let _ = writeln!(text, "unix_socket_directories = '{}'", self.dir.display());
        for (name, value) in &options.settings {
            let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
        }
        self.append(&data.join("postgresql.conf"), &text)?;
        for (name, contents) in &options.files {
            self.write(&data.join(name), contents)?;
        }
        if !options.hba.is_empty() {
            let hba = format!(
                "{}\nlocal all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n",
                options.hba.join("\n")
            );
            self.write(&data.join("pg_hba.conf"), hba.as_bytes())?;
        }
        self.launch(data)
    }

    fn append(&self, path: &Path, text: &str) -> Result<(), ClusterError> {
        let before = std::fs::read_to_string(path).map_err(system(path.display().to_string()))?;
        self.write(path, format!("{before}\n{text}").as_bytes())
    }

    fn write(&self, path: &Path, contents: &[u8]) -> Result<(), ClusterError> {
        std::fs::write(path, contents).map_err(system(path.display().to_string()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(system("permissions"))?;
        if let Some(owner) = self.owner {
            std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid)).map_err(system("chown"))?;
        }
        Ok(())
    }

    /// Starts the server of a new data directory on a free port; tries another if somebody was faster.
    fn launch(&mut self, data: PathBuf) -> Result<(), ClusterError> {
        let mut attempts = 5;
        loop {
            let port = free_port().map_err(system("a free port"))?;
            let started = self.start_server(&data, port);
            attempts -= 1;
            if started.is_ok() || attempts == 0 {
                started?;
                self.nodes.push(Node { port, data });
                return Ok(());
            }
        }
    }

    fn start_server(&self, data: &Path, port: u16) -> Result<(), ClusterError> {
        let (path, log) = (data.to_string_lossy(), data.with_extension("log"));
        let options = format!("-p {port}");
        let result =
            self.run("pg_ctl", &["-D", &path, "-w", "-t", "60", "-l", &log.to_string_lossy(), "-o", &options, "start"]);
        result.map_err(|error| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            ClusterError::Program { program: "postgres".into(), output: format!("{error}\n{log}") }
        })
    }

    /// Adds a streaming replica of the primary.
    pub fn add_replica(&mut self) -> Result<&Node, ClusterError> {
        let data = self.dir.join(format!("replica{}", self.nodes.len()));
        let (path, port) = (data.to_string_lossy().into_owned(), self.nodes[0].port.to_string());
        let from = ["-h", "127.0.0.1", "-p", &port, "-U", SUPERUSER];
        self.run(
            "pg_basebackup",
            &[&from[..], &["-D", &path, "-R", "-X", "stream", "-c", "fast", "--no-sync"]].concat(),
        )?;
        self.launch(data)?;
        Ok(&self.nodes[self.nodes.len() - 1])
    }

    /// Stops a server: `smart`, `fast` or `immediate`.
    pub fn stop(&self, node: usize, mode: &str) -> Result<(), ClusterError> {
        self.run("pg_ctl", &["-D", &self.nodes[node].data.to_string_lossy(), "-w", "-m", mode, "stop"])
    }

    /// Starts a stopped server on its old port.
    pub fn restart(&self, node: usize) -> Result<(), ClusterError> {
        self.start_server(&self.nodes[node].data, self.nodes[node].port)
    }

    /// Makes a replica the primary.
    pub fn promote(&self, node: usize) -> Result<(), ClusterError> {
        self.run("pg_ctl", &["-D", &self.nodes[node].data.to_string_lossy(), "-w", "promote"])
    }

    /// Makes a replica follow another primary from now on.
    pub fn follow(&self, node: usize, primary: usize) -> Result<(), ClusterError> {
        let port = self.nodes[primary].port;
        let sql = format!("alter system set primary_conninfo = 'host=127.0.0.1 port={port} user={SUPERUSER}'");
        self.psql(node, &sql)?;
        self.psql(node, "select pg_reload_conf()").map(drop)
    }

    /// Starts a primary that was stopped in good order as a replica of the one that has taken over from there.
    pub fn rejoin(&self, node: usize, primary: usize) -> Result<(), ClusterError> {
        let (data, port) = (&self.nodes[node].data, self.nodes[primary].port);
        let line = format!("primary_conninfo = 'host=127.0.0.1 port={port} user={SUPERUSER}'\n");
        self.append(&data.join("postgresql.auto.conf"), &line)?;
        self.write(&data.join("standby.signal"), b"")?;
        self.restart(node)
    }

    /// Runs SQL on a server with psql, where there is one; gives what it prints, unaligned and without headers.
    pub fn psql(&self, node: usize, sql: &str) -> Result<String, ClusterError> {
        let port = self.nodes[node].port.to_string();
        let args =
            ["-h", "127.0.0.1", "-p", &port, "-U", SUPERUSER, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres"];
        let output = self.command("psql").args(args).output().map_err(system("psql"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        let output = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(ClusterError::Program { program: "psql".into(), output })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}

/// Starts the shell that waits for our end and then removes every trace.
fn cleaner(binaries: &Binaries, dir: &Path, owner: Option<Owner>) -> io::Result<Child> {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        read -r _
        for pid in "$1"/*/postmaster.pid; do
            [ -f "$pid" ] && "$2/pg_ctl" -D "$(dirname "$pid")" -m immediate -W stop >/dev/null 2>&1
        done
        for pid in "$1"/*/postmaster.pid; do
            n=0
            while [ -f "$pid" ] && kill -0 "$(head -n 1 "$pid")" 2>/dev/null && [ $n -lt 100 ]; do n=$((n+1)); sleep 0.05; done
        done
        rm -rf "$1"
    "#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT, "cleaner"]).arg(dir).arg(binaries.dir());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    // A group of its own: Ctrl-C on the terminal is not for it.
    command.process_group(0);
    if let Some(owner) = owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    command.spawn()
}
