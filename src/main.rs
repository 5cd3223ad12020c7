//! quick main
use pg_ambassador::*;
use std::sync::*;
use std::time::Duration;
struct NoConsole;
impl client::Console for NoConsole {
    fn is_named(&self, _: &str) -> bool {
        false
    }
    fn serve<'a>(&'a self, _: client::login::LoggedIn) -> credentials::BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let port: u16 = a[1].parse().unwrap();
    let up: u16 = a[2].parse().unwrap();
    let size: usize = a[3].parse().unwrap();
    let workers: usize = a[4].parse().unwrap();
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
    let interners = Arc::new(session::Interners::default());
    let cfg = pool::DirectoryConfig {
        databases: vec![pool::DatabaseConfig {
            name: "*".into(),
            nodes: vec![net::Address::new("127.0.0.1", up)],
            dbname: None,
            user: None,
            password: None,
            mode: session::PoolMode::Transaction,
            tls: net::tls::UpstreamTls {
                mode: net::tls::SslMode::Disable,
                authorities: vec![],
                identity: None,
                direct: false,
            },
            socket: Default::default(),
            pool: pool::PoolConfig {
                size,
                min_idle: 0,
                reserve: 0,
                reserve_after: Duration::ZERO,
                idle_timeout: Duration::from_secs(600),
                lifetime: Duration::from_secs(3600),
                connect_timeout: Duration::from_secs(5),
            },
            max_connections: None,
            max_clients: None,
            prepared_limit: 500,
        }],
        users: Default::default(),
        dials_per_node: 4,
    };
    let directory = pool::Directory::new(&cfg, interners.clone()).unwrap();
    let ctx = Arc::new(client::Context {
        clients: client::Clients::new(20000),
        interners,
        directory: directory.clone(),
        cancels: client::CancelLane::new(16),
        users: Default::default(),
        auth_query: None,
        pass_through: false,
        limits: RwLock::new(Arc::new(client::Limits::default())),
        login_timeout: Duration::from_secs(10),
        console: Arc::new(NoConsole),
        mock_secret: [0; 32],
        names: Default::default(),
        sources: Default::default(),
        counters: Default::default(),
        closed: Default::default(),
    });
    let bound = net::listener::Bound::tcp(([127, 0, 0, 1], port).into()).unwrap();
    let door = Arc::new(client::Door { method: auth::Method::Trust, tls: Default::default(), tls_required: false });
    let w =
        worker::Workers::start(workers, 128, &ctx, vec![worker::Entrance { bound, door }], Default::default()).unwrap();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            directory.maintain(std::time::Instant::now());
        }
    });
    drop(w);
}
