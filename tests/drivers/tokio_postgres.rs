//! What programs ordinarily do with tokio-postgres.

use super::{Files, PASSWORD, ROLE, Way};
use crate::support::{Ambassador, shared};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, pin_mut};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, NoTls, Socket};

/// TLS by rustls for tokio-postgres.
#[derive(Clone)]
struct Tls(tokio_rustls::TlsConnector);

impl Tls {
    fn new() -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(Files::get().path("cert.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Self(Arc::new(config.with_root_certificates(roots).with_no_client_auth()).into())
    }
}

struct Connector(Tls, ServerName<'static>);

struct Stream(tokio_rustls::client::TlsStream<Socket>);

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Stream;
    type TlsConnect = Connector;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Connector> {
        Ok(Connector(self.clone(), ServerName::try_from(host.to_owned()).map_err(io::Error::other)?))
    }
}

impl TlsConnect<Socket> for Connector {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, stream: Socket) -> Self::Future {
        Box::pin(async move { Ok(Stream(self.0.0.connect(self.1, stream).await?)) })
    }
}

impl tokio_postgres::tls::TlsStream for Stream {
    /// tls-server-end-point of RFC 5929: SCRAM-SHA-256-PLUS is taken where there is one.
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.0.get_ref().1.peer_certificates().unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificates[0]);
        ChannelBinding::tls_server_end_point(digest.as_ref().to_vec())
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Where to connect to, and how.
struct Place {
    config: Config,
    way: Way,
}

impl Place {
    async fn try_connect(&self) -> Result<Client, tokio_postgres::Error> {
        match self.way {
            Way::Plain => {
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            }
            Way::Tls => {
                let (client, connection) = self.config.connect(Tls::new()).await?;
                tokio::spawn(connection);
                Ok(client)
            }
        }
    }

    async fn connect(&self) -> Client {
        self.try_connect().await.unwrap()
    }

    async fn cancel(&self, client: &Client) {
        let token = client.cancel_token();
        match self.way {
            Way::Plain => token.cancel_query(NoTls).await.unwrap(),
            Way::Tls => token.cancel_query(Tls::new()).await.unwrap(),
        }
    }
}

fn code(error: &tokio_postgres::Error) -> &SqlState {
    error.code().unwrap_or_else(|| panic!("{error:?}"))
}

async fn statements(client: &Client) {
    let statement = client.prepare("select $1::int4 + 1, $2::text, $3::bytea, $4::float8[], $5::bool").await.unwrap();
    for n in 0..50 {
        let (text, raw) = (n.to_string(), vec![0u8, 255, 10]);
        let row =
            client.query_one(&statement, &[&n, &text, &raw, &vec![Some(1.5f64), None], &None::<bool>]).await.unwrap();
        assert_eq!((row.get::<_, i32>(0), row.get::<_, String>(1), row.get::<_, Vec<u8>>(2)), (n + 1, text, raw));
        assert_eq!(row.get::<_, Vec<Option<f64>>>(3), [Some(1.5), None]);
        assert_eq!(row.get::<_, Option<bool>>(4), None);
    }
    // Many at once: the driver pipelines them.
    let (statement, empty) = (&statement, (Vec::<u8>::new(), Vec::<f64>::new()));
    let empty = &empty;
    let queries =
        (0..300i32).map(|n| async move { client.query_one(statement, &[&n, &"", &empty.0, &empty.1, &true]).await });
    let rows = futures_util::future::try_join_all(queries).await.unwrap();
    assert!(rows.iter().zip(1..).all(|(row, n)| row.get::<_, i32>(0) == n));
    let error = client.query("select 1 / $1::int4", &[&0i32]).await.unwrap_err();
    assert_eq!(code(&error), &SqlState::DIVISION_BY_ZERO);
    let error = client.prepare("selec 1").await.unwrap_err();
    assert_eq!(code(&error), &SqlState::SYNTAX_ERROR);
    let messages = client.simple_query("select 1; select 2").await.unwrap();
    assert_eq!(messages.len(), 6);
}

async fn transactions(client: &mut Client) {
    client.batch_execute("create table ledger (n int primary key)").await.unwrap();
    let mut transaction = client.transaction().await.unwrap();
    transaction.execute("insert into ledger values (1)", &[]).await.unwrap();
    let savepoint = transaction.savepoint("s").await.unwrap();
    let error = savepoint.execute("insert into ledger values (1)", &[]).await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().constraint(), Some("ledger_pkey"));
    savepoint.rollback().await.unwrap();
    // A portal that is read in parts.
    let portal = transaction.bind("select generate_series(1, 100)", &[]).await.unwrap();
    for n in 0..10 {
        let rows = transaction.query_portal(&portal, 10).await.unwrap();
        assert_eq!((rows.len(), rows[0].get::<_, i32>(0)), (10, n * 10 + 1));
    }
    transaction.commit().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute("delete from ledger", &[]).await.unwrap();
    drop(transaction); // rolls back
    assert_eq!(client.query("select * from ledger", &[]).await.unwrap().len(), 1);
}

async fn copies(client: &Client) {
    client.batch_execute("create table heap (n int, t text)").await.unwrap();
    let text: String = (0..20_000).map(|n| format!("{n}\tline {n}\n")).collect();
    let sink = client.copy_in("copy heap from stdin").await.unwrap();
    pin_mut!(sink);
    for part in text.as_bytes().chunks(7001) {
        sink.send(Bytes::copy_from_slice(part)).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 20_000);
    let out = client.copy_out("copy (select * from heap order by n) to stdout").await.unwrap();
    let parts: Vec<Bytes> = out.try_collect().await.unwrap();
    assert!(parts.concat() == text.as_bytes());
    let sink = client.copy_in("copy heap from stdin").await.unwrap();
    pin_mut!(sink);
    sink.send(Bytes::from_static(b"x\ty\n")).await.unwrap();
    assert_eq!(code(&sink.finish().await.unwrap_err()), &SqlState::INVALID_TEXT_REPRESENTATION);
}

async fn large(client: &Client) {
    for size in [1, 100, 8192, 65_536, 1 << 20, 16 << 20] {
        let data: Vec<u8> = (0..=255u8).cycle().take(size).collect();
        let row = client.query_one("select $1::bytea", &[&data]).await.unwrap();
        assert!(row.get::<_, &[u8]>(0) == data, "{size} bytes");
    }
}

async fn cancels(place: &Place, client: &Client) {
    let sleeping = client.simple_query("select pg_sleep(60)");
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        place.cancel(client).await;
    };
    let (result, ()) = tokio::join!(sleeping, cancel);
    assert_eq!(code(&result.unwrap_err()), &SqlState::QUERY_CANCELED);
    client.simple_query("select 1").await.unwrap();
}

async fn crowd(place: &Place) {
    let client = place.connect().await;
    client.batch_execute("create table crowd as select 0 as n").await.unwrap();
    futures_util::stream::iter(0..20)
        .for_each_concurrent(None, |who| async move {
            let mut client = place.connect().await;
            for n in 0..30 {
                let token = format!("{who}-{n}");
                let transaction = client.transaction().await.unwrap();
                let row = transaction.query_one("select $1::text", &[&token]).await.unwrap();
                assert_eq!(row.get::<_, String>(0), token);
                transaction.execute("update crowd set n = n + 1", &[]).await.unwrap();
                transaction.commit().await.unwrap();
            }
        })
        .await;
    assert_eq!(client.query_one("select n from crowd", &[]).await.unwrap().get::<_, i32>(0), 600);
}

pub(super) fn run(database: &str, way: Way) {
    let ambassador = super::ambassador(shared(), database, way);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(all(&ambassador, database, way));
}

async fn all(ambassador: &Ambassador, database: &str, way: Way) {
    let mut config = Config::new();
    config.host("localhost").hostaddr([127, 0, 0, 1].into()).port(ambassador.port);
    config.user(ROLE).password(PASSWORD).dbname(database).ssl_mode(SslMode::Disable);
    if way == Way::Tls {
        config.ssl_mode(SslMode::Require).channel_binding(tokio_postgres::config::ChannelBinding::Require);
    }
    let mut place = Place { config, way };
    let mut client = place.connect().await;
    statements(&client).await;
    transactions(&mut client).await;
    copies(&client).await;
    large(&client).await;
    cancels(&place, &client).await;
    crowd(&place).await;
    place.config.dbname("nowhere");
    let error = place.try_connect().await.map(drop).unwrap_err();
    assert_eq!(code(&error), &SqlState::UNDEFINED_DATABASE);
}
