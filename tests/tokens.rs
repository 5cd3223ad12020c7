//! Logins with tokens of AWS, Google and Azure, at servers that check them, with everything the clouds' own endpoints do
//! played by the test.

use crate::drivers::{fetched, skip};
use crate::support::hostile::Visit;
use crate::support::iam::{Checker, Key, Keys, write_date};
use crate::support::tls::{Authority, Pair};
use crate::support::web::{Asked, Web, ok};
use crate::support::{Ambassador, Client, Dir, Hostile, Random, cluster, shared, wait_until};
use pg_ambassador::credentials::{Endpoint, aws};
use pg_ambassador::demo::cluster::Options;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

const HOST: &str = "db.abc123.eu-west-1.rds.amazonaws.com";
const ENDPOINT: (&str, u16, &str) = (HOST, 5432, "eu-west-1");
const LOGIN: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];
/// How long the keys of an endpoint are good for where nothing is said.
const HOUR: Duration = Duration::from_secs(3600);

/// Certificates that are good for this machine.
struct Place {
    dir: Dir,
    authority: Authority,
    pair: Pair,
}

impl Place {
    fn new() -> Self {
        let (dir, authority) = (Dir::new(), Authority::new("ours"));
        let pair = authority.sign(&["localhost", "127.0.0.1"]);
        dir.write("root.crt", &authority.pem);
        Self { dir, authority, pair }
    }

    /// A server that accepts what these keys have signed for [`ENDPOINT`].
    fn rds(&self, keys: &Keys) -> Checker {
        let keys = keys.clone();
        Checker::start(&self.pair, shared().port(), move |user, token| keys.check(token, ENDPOINT, user))
    }

    fn url(&self, port: u16, more: &str) -> String {
        format!("postgres://127.0.0.1:{port}/?sslrootcert={}/root.crt&{more}", self.dir.path().display())
    }

    fn rds_url(&self, port: u16) -> String {
        self.url(port, &format!("credentials=aws_rds_iam&iam_host={HOST}&iam_port=5432"))
    }

    /// Logs in at an RDS that knows these keys, in this environment.
    fn logs_in(&self, keys: &Keys, env: &[(&str, &str)]) -> Checker {
        self.logs_in_with(keys, env, &[])
    }

    fn logs_in_with(&self, keys: &Keys, env: &[(&str, &str)], args: &[&str]) -> Checker {
        let checker = self.rds(keys);
        let url = self.rds_url(checker.port);
        let ambassador = Ambassador::start_with(&[&[url.as_str(), "--checkout-timeout", "20s"], args].concat(), env);
        works(&ambassador);
        assert_eq!(checker.counts().1, 0, "{:?}\n{}", checker.seen(), ambassador.log());
        checker
    }
}

fn works(ambassador: &Ambassador) {
    let mut client = Client::try_login(ambassador.port, &LOGIN)
        .unwrap_or_else(|error| panic!("{error:?}\n{:#?}\n{}", ambassador.show("CREDENTIALS"), ambassador.log()));
    assert_eq!(client.value("select current_user"), "postgres");
}

/// What SHOW CREDENTIALS says of a source: by its columns.
fn credentials(ambassador: &Ambassador, source: &str) -> BTreeMap<&'static str, String> {
    const COLUMNS: [&str; 12] = [
        "source",
        "principal",
        "server",
        "state",
        "age_seconds",
        "expires",
        "expires_seconds",
        "fetched",
        "failed",
        "refused",
        "last_error",
        "last_error_seconds",
    ];
    let rows = ambassador.show("CREDENTIALS").into_iter().filter(|row| row[0].as_deref() == Some(source));
    rows.take(1).flat_map(|row| COLUMNS.into_iter().zip(row.into_iter().map(Option::unwrap_or_default))).collect()
}

/// A container's or an instance's credentials, as their endpoints write them.
fn json_keys(id: &str, key: &Key) -> String {
    let expires = write_date(key.expires.unwrap_or(SystemTime::now() + HOUR));
    format!(
        r#"{{"Code":"Success","Type":"AWS-HMAC","LastUpdated":"2024-01-01T00:00:00Z","AccessKeyId":"{id}","SecretAccessKey":"{}","Token":"{}","Expiration":"{expires}"}}"#,
        key.secret,
        key.session.as_deref().unwrap_or_default()
    )
}

/// New keys of a session, known to RDS from now on.
fn new_session(keys: &Keys, number: usize, life: Duration) -> (String, Key) {
    let id = format!("ASIATEST{number:06}");
    // Whole seconds: that is what an endpoint writes.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let expires = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(now) + life);
    let session = Some(format!("session/{number}+with=every thing=="));
    let key = Key { secret: format!("secret/{number}+"), session, expires };
    keys.insert(&id, key.clone());
    (id, key)
}

/// A container's endpoint: each time it is asked it has new keys, that live for so long.
fn container(keys: &Keys, life: Duration) -> Web {
    let (keys, count) = (keys.clone(), AtomicUsize::new(0));
    Web::start(move |asked| {
        if asked.header("authorization") != Some("the token of the container") {
            return (403, Vec::new(), "{}".into());
        }
        let (id, key) = new_session(&keys, count.fetch_add(1, Ordering::SeqCst), life);
        ok(json_keys(&id, &key))
    })
}

fn container_env(web: &Web) -> Vec<(String, String)> {
    vec![
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI".into(), format!("{}/keys", web.url())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN".into(), "the token of the container".into()),
    ]
}

fn borrow(env: &[(String, String)]) -> Vec<(&str, &str)> {
    env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

// ------------------------------------------------------------------------------------------- where AWS keys come from

#[test]
fn rds_tokens_signed_with_keys_of_the_environment_and_of_a_profile_log_in() {
    let place = Place::new();
    place.logs_in(
        &Keys::with("AKIDENV", "env/secret+"),
        &[("AWS_ACCESS_KEY_ID", "AKIDENV"), ("AWS_SECRET_ACCESS_KEY", "env/secret+")],
    );
    let file = place.dir.write(
        "aws-credentials",
        "[default]\naws_access_key_id=WRONG\naws_secret_access_key=wrong\n[db]\naws_access_key_id=AKIDPROFILE\naws_secret_access_key=profile/secret\n",
    );
    let file = file.to_str().unwrap();
    let keys = Keys::with("AKIDPROFILE", "profile/secret");
    place.logs_in(&keys, &[("AWS_SHARED_CREDENTIALS_FILE", file), ("AWS_PROFILE", "db")]);
    place.logs_in_with(&keys, &[("AWS_SHARED_CREDENTIALS_FILE", file)], &["--set", "aws_profile=db"]);
    // A program that a profile names prints them.
    let printed = r#"{"Version":1,"AccessKeyId":"AKIDPROFILE","SecretAccessKey":"profile/secret"}"#;
    let printed = place.dir.write("printed.json", printed);
    let config = format!("[profile program]\ncredential_process = cat {}\n", printed.display());
    let config = place.dir.write("aws-program", &config).display().to_string();
    place.logs_in(&keys, &[("AWS_CONFIG_FILE", &config), ("AWS_PROFILE", "program")]);
}

/// STS, as far as it gives credentials for roles.
fn sts(keys: &Keys) -> Web {
    let (keys, count) = (keys.clone(), AtomicUsize::new(0));
    Web::start(move |asked| {
        let action = if asked.body.contains("Action=AssumeRoleWithWebIdentity") {
            "AssumeRoleWithWebIdentity"
        } else {
            "AssumeRole"
        };
        let proven = match action {
            "AssumeRole" => asked.header("authorization").is_some_and(|header| header.contains("AKIDBASE")),
            _ => asked.body.contains("WebIdentityToken=the.web.token"),
        };
        if !proven || !asked.body.contains("role%2Fdb") {
            let error = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>";
            return (403, Vec::new(), error.into());
        }
        let (id, key) = new_session(&keys, count.fetch_add(1, Ordering::SeqCst), HOUR);
        ok(format!(
            "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><AssumedRoleUser>\
             <AssumedRoleId>A:s</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/db/s</Arn></AssumedRoleUser>\
             <Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
             <Expiration>{}</Expiration></Credentials></{action}Result></{action}Response>",
            key.secret,
            key.session.unwrap(),
            write_date(key.expires.unwrap())
        ))
    })
}

fn role_profile(place: &Place) -> (String, String) {
    let config = place.dir.write(
        "aws-config",
        "[profile app]\nrole_arn=arn:aws:iam::123456789012:role/db\nsource_profile=base\nregion=eu-west-1\n",
    );
    let base = "[base]\naws_access_key_id=AKIDBASE\naws_secret_access_key=base\n";
    let credentials = place.dir.write("aws-base", base);
    (config.display().to_string(), credentials.display().to_string())
}

#[test]
fn rds_tokens_of_roles_that_a_profile_or_a_web_identity_assumes_log_in() {
    let place = Place::new();
    let keys = Keys::default();
    let sts = sts(&keys);
    let url = sts.url();
    let (config, base) = role_profile(&place);
    place.logs_in(
        &keys,
        &[
            ("AWS_CONFIG_FILE", &config),
            ("AWS_SHARED_CREDENTIALS_FILE", &base),
            ("AWS_PROFILE", "app"),
            ("AWS_ENDPOINT_URL_STS", &url),
        ],
    );
    let token = place.dir.write("web-token", "the.web.token").display().to_string();
    place.logs_in(
        &keys,
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/db"),
            ("AWS_ENDPOINT_URL_STS", &url),
        ],
    );
    assert_eq!(sts.asked().len(), 2, "once for each, however many tokens");
}

/// moto's server, behind something that notes which keys it gives out.
struct Moto {
    child: Child,
    port: u16,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Python with what `scripts/drivers` has fetched, or has anyway.
fn python(modules: &str) -> Option<Command> {
    let command = || {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", fetched("aws")).stdin(Stdio::null());
        python
    };
    let there = command().args(["-c", &format!("import {modules}")]).stderr(Stdio::null()).status();
    there.is_ok_and(|status| status.success()).then(command)
}

fn moto() -> Option<Moto> {
    let mut python = python("moto.server")?;
    let port = pg_ambassador::demo::cluster::free_port().unwrap();
    python.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
    let child = python.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let moto = Moto { child, port };
    wait_until("moto listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    Some(moto)
}

/// Passes requests on, and notes the keys in the answers.
fn recording(moto: &Moto, keys: &Keys) -> Web {
    let (port, keys) = (moto.port, keys.clone());
    Web::start(move |asked: &Asked| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut request = format!("{} {} HTTP/1.0\r\n", asked.method, asked.path);
        for (name, value) in asked.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("connection")) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{request}\r\n{}", asked.body).as_bytes()).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let tag = |name: &str| {
            let rest = body.split_once(&format!("<{name}>"))?.1;
            Some(rest.split('<').next()?.to_owned())
        };
        if let (Some(id), Some(secret)) = (tag("AccessKeyId"), tag("SecretAccessKey")) {
            keys.insert(&id, Key { secret, session: tag("SessionToken"), expires: None });
        }
        (head.split(' ').nth(1).unwrap().parse().unwrap(), Vec::new(), body.to_owned())
    })
}

#[test]
fn rds_tokens_of_roles_that_moto_gives_log_in() {
    let Some(moto) = moto() else { return skip("roles of moto's STS", "moto is not there (scripts/drivers aws)") };
    let place = Place::new();
    let keys = Keys::default();
    let sts = recording(&moto, &keys);
    let url = sts.url();
    let (config, base) = role_profile(&place);
    place.logs_in(
        &keys,
        &[
            ("AWS_CONFIG_FILE", &config),
            ("AWS_SHARED_CREDENTIALS_FILE", &base),
            ("AWS_PROFILE", "app"),
            ("AWS_ENDPOINT_URL_STS", &url),
        ],
    );
    let token = place.dir.write("web-token", "the.web.token").display().to_string();
    place.logs_in(
        &keys,
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/db"),
            ("AWS_ENDPOINT_URL_STS", &url),
        ],
    );
    assert_eq!(sts.asked().len(), 2);
}

#[test]
fn rds_tokens_of_a_container_and_of_a_pods_identity_log_in() {
    let place = Place::new();
    let keys = Keys::default();
    let web = container(&keys, HOUR);
    place.logs_in(&keys, &borrow(&container_env(&web)));
    // EKS Pod Identity: the token comes in a file.
    let token = place.dir.write("pod-token", "the token of the container").display().to_string();
    let uri = format!("{}/keys", web.url());
    place.logs_in(
        &keys,
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token)],
    );
    assert_eq!(web.asked().len(), 2);
}

/// An instance's metadata service: nothing without a session's token.
fn instance_metadata(keys: &Keys) -> Web {
    let keys = keys.clone();
    Web::start(move |asked| {
        if asked.method == "PUT" && asked.path == "/latest/api/token" {
            let ttl = ("x-aws-ec2-metadata-token-ttl-seconds".to_owned(), "21600".to_owned());
            return (200, vec![ttl], "metadata-session".into());
        }
        if asked.header("x-aws-ec2-metadata-token") != Some("metadata-session") {
            return (401, Vec::new(), String::new());
        }
        match asked.path.trim_end_matches('/').rsplit('/').next() {
            Some("security-credentials" | "security-credentials-extended") => ok("db-role"),
            Some("db-role") => {
                let (id, key) = new_session(&keys, 7, HOUR);
                ok(json_keys(&id, &key))
            }
            _ => (404, Vec::new(), String::new()),
        }
    })
}

#[test]
fn rds_tokens_of_an_instance_log_in_by_the_second_version_of_its_metadata_service() {
    let place = Place::new();
    let keys = Keys::default();
    let web = instance_metadata(&keys);
    let url = web.url();
    place.logs_in(&keys, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url), ("AWS_EC2_METADATA_DISABLED", "false")]);
}

#[test]
fn keys_that_cannot_be_had_are_explained() {
    let place = Place::new();
    let checker = place.rds(&Keys::default());
    // A port that nobody listens on stands for a metadata service out of reach.
    let nobody = format!("http://127.0.0.1:{}", pg_ambassador::demo::cluster::free_port().unwrap());
    let env = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", nobody.as_str()), ("AWS_EC2_METADATA_DISABLED", "false")];
    // It is known as whom to log in: that is tried at the start.
    let url = place.rds_url(checker.port).replace("127.0.0.1", "postgres@127.0.0.1");
    let ambassador = Ambassador::start_with(&[&url, "--checkout-timeout", "3s"], &env);
    let error = Client::try_login(ambassador.port, &LOGIN).err().unwrap();
    assert_eq!(error.code(), "08001", "{error:?}");
    assert!(error.field(b'M').unwrap().contains("no valid credential"), "{error:?}");
    wait_until("it is said what to look at", || ambassador.log().contains("hop limit"));
    assert!(credentials(&ambassador, "aws")["last_error"].contains("hop limit"));
    let (status, body) = ambassador.http("/startupz");
    assert!(status == 503 && body.contains("hop limit"), "{status} {body}");
    assert!(checker.seen().is_empty());
}

#[test]
fn a_refused_token_is_explained_and_not_tried_again_and_again() {
    let place = Place::new();
    let checker = Checker::start(&place.pair, shared().port(), |_, _| Err("no rds-db:connect".into()));
    let env = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let ambassador = Ambassador::start_with(&[place.rds_url(checker.port)], &env);
    for _ in 0..20 {
        let error = Client::try_login(ambassador.port, &LOGIN).err().unwrap();
        assert_eq!(error.code(), "08001", "{error:?}");
    }
    wait_until("it is said why", || ambassador.log().contains("rds-db:connect"));
    let (accepted, refused) = checker.counts();
    // One login: with the token at hand and with a fresh one. Only a slow machine gets to the next attempt of the back-off.
    assert!(accepted == 0 && (1..=4).contains(&refused), "{refused}");
}

// ------------------------------------------------------------------------------------------------- Google and Azure

#[test]
fn google_tokens_of_the_metadata_server_log_in() {
    let place = Place::new();
    let web = Web::start(|asked| {
        let scope = "scopes=https%3A%2F%2Fwww%2Egoogleapis%2Ecom%2Fauth%2Fsqlservice%2Elogin";
        match asked.path.split_once('?') {
            Some(("/computeMetadata/v1/instance/service-accounts/default/token", query))
                if query == scope && asked.header("metadata-flavor") == Some("Google") =>
            {
                ok(r#"{"access_token":"ya29.cloudsql","expires_in":3599,"token_type":"Bearer"}"#)
            }
            Some((_, query)) if query.ends_with("auth%2Falloydb%2Elogin") => {
                ok(r#"{"access_token":"ya29.alloydb","expires_in":3599,"token_type":"Bearer"}"#)
            }
            _ => (404, Vec::new(), "no".into()),
        }
    });
    let host = format!("127.0.0.1:{}", web.port);
    for (scope, token) in [("cloudsql", "ya29.cloudsql"), ("alloydb", "ya29.alloydb")] {
        let is_right = move |_: &str, password: &str| (password == token).then_some(()).ok_or("wrong".to_owned());
        let checker = Checker::start(&place.pair, shared().port(), is_right);
        let url = place.url(checker.port, "credentials=gcp_iam");
        let set = format!("gcp_scope={scope}");
        let ambassador = Ambassador::start_with(&[&url, "--set", &set], &[("GCE_METADATA_HOST", &host)]);
        works(&ambassador);
        assert_eq!(checker.counts().1, 0);
        assert_eq!(credentials(&ambassador, "gcp_iam")["state"], "good");
    }
    assert_eq!(web.asked().len(), 2);
}

/// Each of Azure's endpoints: its token, or an error as Azure writes it.
fn azure(asked: &Asked) -> crate::support::web::Answer {
    let token = |token: &str| {
        let on = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 3600;
        ok(format!(r#"{{"access_token":"{token}","expires_on":"{on}","token_type":"Bearer"}}"#))
    };
    let resource = "resource=https%3A%2F%2Fossrdbms%2Daad%2Edatabase%2Ewindows%2Enet";
    let path = asked.path.as_str();
    if path.starts_with("/metadata/identity/oauth2/token?api-version=2018-02-01&") {
        return match asked.header("metadata") {
            Some("true") if path.contains(resource) && path.contains("client_id=vm%2Dclient") => token("imds"),
            _ => (400, Vec::new(), r#"{"error":"invalid_request","error_description":"Identity not found"}"#.into()),
        };
    }
    if path.starts_with("/msi/token?api-version=2019-08-01&") && path.contains(resource) {
        return match asked.header("x-identity-header") {
            Some("the identity header") => token("container"),
            _ => (401, Vec::new(), String::new()),
        };
    }
    if asked.method == "POST" && path == "/the%2Dtenant/oauth2/v2.0/token" {
        let wanted = [
            "grant_type=client_credentials",
            "client_id=aks%2Dclient",
            "scope=https%3A%2F%2Fossrdbms%2Daad%2Edatabase%2Ewindows%2Enet%2F%2Edefault",
            "client_assertion=the%2Efederated%2Etoken",
            "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer",
        ];
        let given: HashSet<&str> = asked.body.split('&').collect();
        if wanted.iter().all(|pair| given.contains(pair)) {
            return ok(r#"{"access_token":"workload","expires_in":3599,"token_type":"Bearer"}"#);
        }
    }
    (404, Vec::new(), String::new())
}

#[test]
fn azure_tokens_of_all_three_kinds_of_identity_log_in() {
    let place = Place::new();
    let web = Web::start(azure);
    let url = web.url();
    let federated = place.dir.write("federated", "the.federated.token\n").display().to_string();
    let msi = format!("{url}/msi/token");
    let imds = vec![("AZURE_POD_IDENTITY_AUTHORITY_HOST", url.as_str())];
    let container = vec![("IDENTITY_ENDPOINT", msi.as_str()), ("IDENTITY_HEADER", "the identity header")];
    let workload = vec![
        ("AZURE_FEDERATED_TOKEN_FILE", federated.as_str()),
        ("AZURE_TENANT_ID", "the-tenant"),
        ("AZURE_CLIENT_ID", "aks-client"),
        ("AZURE_AUTHORITY_HOST", url.as_str()),
    ];
    for (token, env, more) in
        [("imds", imds.clone(), "&azure_client_id=vm-client"), ("container", container, ""), ("workload", workload, "")]
    {
        let is_right = move |_: &str, password: &str| (password == token).then_some(()).ok_or("wrong".to_owned());
        let checker = Checker::start(&place.pair, shared().port(), is_right);
        let url = place.url(checker.port, &format!("credentials=azure_entra{more}"));
        let ambassador = Ambassador::start_with(&[url], &env);
        works(&ambassador);
        assert_eq!(checker.counts().1, 0, "{token}");
    }
    // What Azure says of a wrong identity reaches the operator.
    let checker = Checker::start(&place.pair, shared().port(), |_, _| Err("never".into()));
    let url = place.url(checker.port, "credentials=azure_entra&azure_client_id=other");
    let ambassador = Ambassador::start_with(&[&url, "--checkout-timeout", "1s"], &imds);
    assert_eq!(Client::try_login(ambassador.port, &LOGIN).err().unwrap().code(), "08001");
    assert!(credentials(&ambassador, "azure_entra")["last_error"].contains("Identity not found"));
}

#[test]
fn a_reload_fetches_nothing_again_and_a_clock_that_differs_is_told() {
    let place = Place::new();
    let web = Web::start(|_| {
        let old = ("date".to_owned(), "Sun, 06 Nov 1994 08:49:37 GMT".to_owned());
        (200, vec![old], r#"{"access_token":"ya29","expires_in":3599,"token_type":"Bearer"}"#.into())
    });
    let checker = Checker::start(&place.pair, shared().port(), |_, _| Ok(()));
    let host = format!("127.0.0.1:{}", web.port);
    let url = place.url(checker.port, "credentials=gcp_iam");
    let ambassador = Ambassador::start_with(&[url], &[("GCE_METADATA_HOST", &host)]);
    works(&ambassador);
    wait_until("the clock is told of", || ambassador.log().contains("clock skew"));
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    for _ in 0..3 {
        console.query("RELOAD");
        console.query("RECONNECT");
        works(&ambassador);
        assert_eq!(Client::login(ambassador.port, &LOGIN).value("select 1"), "1");
    }
    assert!(checker.counts().0 >= 3, "{:?}", checker.counts());
    assert_eq!(web.asked().len(), 1);
}

// ------------------------------------------------------------------------------------- over which connection it leaves

#[test]
fn i13_a_token_does_not_leave_but_over_verified_tls_whatever_the_server_asks_for() {
    const METHODS: [(&str, &[u8]); 4] = [
        ("trust", b"\0\0\0\0"),
        ("cleartext", b"\0\0\0\x03"),
        ("md5", b"\0\0\0\x05salt"),
        ("scram", b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
    ];
    let place = Place::new();
    let others = Authority::new("theirs");
    let versions = [&rustls::version::TLS13];
    let wrong = [
        ("another authority", Some(others.sign(&["127.0.0.1"]))),
        ("another name", Some(place.authority.sign(&["elsewhere.example"]))),
        ("no TLS", None),
    ];
    let env = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    for (what, pair) in wrong {
        for (method, body) in METHODS {
            let config = pair.as_ref().map(|pair| pair.server(&versions));
            let hostile = Hostile::start(move |visit: &mut Visit| {
                visit.hello()?;
                match &config {
                    Some(config) => {
                        visit.send(b"S")?;
                        visit.tls(config)?;
                    }
                    None => visit.send(b"N")?,
                }
                visit.hello()?;
                visit.send(&crate::support::client::message(b'R', body))?;
                visit.wait_for_the_end()
            });
            let args = [&place.rds_url(hostile.port), "--checkout-timeout", "500ms"];
            let ambassador = Ambassador::start_with(&args, &env);
            let error = Client::try_login(ambassador.port, &LOGIN).err().expect("it is refused");
            assert!(["08001", "57P03"].contains(&error.code().as_str()), "{what}, {method}: {error:?}");
            assert!(hostile.visits() > 0);
            for secret in [&b"X-Amz"[..], b"AKID", b"postgres\0"] {
                assert!(!hostile.has_heard(secret), "{what}, {method}");
            }
        }
    }
}

#[test]
fn i13_a_token_is_no_password_for_a_challenge_even_of_a_server_that_is_who_it_should_be() {
    let place = Place::new();
    let versions = [&rustls::version::TLS13];
    for body in [&b"\0\0\0\x05salt"[..], b"\0\0\0\x0aSCRAM-SHA-256\0\0"] {
        let config = place.pair.server(&versions);
        let server = Hostile::start(move |visit: &mut Visit| {
            visit.hello()?;
            visit.send(b"S")?;
            visit.tls(&config)?;
            visit.hello()?;
            visit.send(&crate::support::client::message(b'R', body))?;
            visit.wait_for_the_end()
        });
        let env = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "secret")];
        let ambassador = Ambassador::start_with(&[place.rds_url(server.port)], &env);
        let error = Client::try_login(ambassador.port, &LOGIN).err().unwrap();
        assert_eq!(error.code(), "08001", "{error:?}\n{}", ambassador.log());
        assert!(server.has_heard(b"postgres\0"));
        assert!(!server.has_heard(b"AKID") && !server.has_heard(b"p\0\0"));
        wait_until("it is said why", || ambassador.log().contains("log in by the cloud's IAM"));
    }
}

#[test]
fn tokens_where_nothing_proves_the_server_and_regions_that_nobody_names_are_faults_of_the_configuration() {
    let check = |url: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_pg-ambassador")).args(["check", url]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    for mode in ["disable", "allow", "prefer", "require"] {
        let said = check(&format!("postgres://{HOST}/?credentials=aws_rds_iam&sslmode={mode}"));
        assert!(said.contains("use sslmode=verify-full"), "{said}");
    }
    for (url, words) in [
        ("postgres://db.internal/?credentials=aws_rds_iam", "set aws_region"),
        ("postgres://db.global-a.global.rds.amazonaws.com/?credentials=aws_rds_iam", "set aws_region"),
        ("postgres://127.0.0.1/?credentials=aws_rds_iam&aws_region=eu-west-1", "set iam_host"),
        ("postgres://a,b/?credentials=aws_rds_iam&aws_region=eu-west-1,eu-west-2,x", "one for each of the 2 hosts"),
        ("postgres://a/?credentials=aws", "write one of"),
        ("postgres://%2Ftmp/?credentials=gcp_iam", "is a unix socket"),
    ] {
        let said = check(url);
        assert!(said.contains(words), "{url}: {said}");
    }
}

// ---------------------------------------------------------------------------------------------------- through the time

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `TOKEN_SOAK_SECONDS`, `TOKEN_SOAK_LIFE` and `TOKEN_SOAK_CLIENTS` make more of it.
#[test]
fn tokens_that_end_all_the_time_are_never_missed_by_clients() {
    let life = Duration::from_secs(setting("TOKEN_SOAK_LIFE", 10));
    let seconds = setting("TOKEN_SOAK_SECONDS", 0);
    let clients = setting("TOKEN_SOAK_CLIENTS", 20);
    let place = Place::new();
    let keys = Keys::default();
    let (web, checker) = (container(&keys, life), place.rds(&keys));
    let env = container_env(&web);
    // Servers live for a second: there is always somebody who logs in.
    let url = place.rds_url(checker.port);
    let args = [url.as_str(), "--pool-size", "8", "--set", "server_lifetime=1s"];
    let ambassador = Ambassador::start_with(&args, &borrow(&env));
    let (over, errors, done) = (AtomicBool::new(false), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let result = Client::try_login(ambassador.port, &LOGIN).and_then(|mut client| {
                        for _ in 0..20 {
                            client.try_query("select 1")?;
                            done.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        Ok(())
                    });
                    if let Err(error) = result {
                        errors.lock().unwrap().push(format!("{error:?}"));
                        return;
                    }
                }
            });
        }
        // Four sets of keys: the first ones have ended long ago.
        let enough = || started.elapsed().as_secs() >= seconds && web.asked().len() >= 4;
        while !enough() && errors.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
    });
    let elapsed = started.elapsed().as_secs_f64();
    assert!(errors.lock().unwrap().is_empty(), "{:?}\n{}", errors.lock().unwrap(), ambassador.log());
    let (accepted, refused) = checker.counts();
    let fetches = web.asked().len();
    println!(
        "{elapsed:.0} s, {clients} clients, keys that live {life:?}: {} statements, {accepted} logins, {refused} refused, \
         {fetches} fetches of keys",
        done.load(Ordering::Relaxed)
    );
    assert_eq!(refused, 0, "{:?}", checker.seen().iter().rfind(|login| !login.accepted));
    // Renewed after half of their life, as nothing that lives so short can be renewed 5 minutes before its end.
    assert!(fetches as f64 <= 2.0 * elapsed / life.as_secs_f64() + 2.0, "{fetches} fetches");
    let tokens: HashSet<String> = checker.seen().into_iter().map(|login| login.password).collect();
    assert!(accepted > tokens.len(), "tokens are used again: {accepted} logins with {} tokens", tokens.len());
}

#[test]
fn f17_connections_that_work_are_kept_while_there_is_no_token_and_the_first_one_mends_all() {
    let place = Place::new();
    let keys = Keys::default();
    let (web, checker) = (container(&keys, Duration::from_secs(4)), place.rds(&keys));
    let url = place.rds_url(checker.port);
    let args = [&url, "--pool-size", "2", "--set", "server_lifetime=1s", "--checkout-timeout", "2s"];
    let ambassador = Ambassador::start_with(&args, &borrow(&container_env(&web)));
    let mut client = Client::login(ambassador.port, &LOGIN);
    assert_eq!(client.value("select 1"), "1");
    // Down for as long as it takes for the token to end; the connection's own life is over as well by then.
    web.set_down(true);
    wait_until("the token has ended", || {
        client.query("select 1");
        credentials(&ambassador, "aws_rds_iam")["state"] == "expired"
    });
    let logins = checker.counts();
    let asked = web.asked().len();
    let (mut kept, down) = (String::new(), Instant::now());
    let outage = setting("TOKEN_OUTAGE_SECONDS", 0);
    wait_until("it was asked for another time and again", || {
        kept = client.value("select pg_backend_pid()");
        web.asked().len() >= asked + 3 && down.elapsed().as_secs() >= outage
    });
    let serving = client.value("select pg_backend_pid()");
    assert_eq!(serving, kept, "the same connection all the time");
    assert_eq!(checker.counts(), logins, "nobody has logged in, and no expired token was shown");
    // A second connection is not to be had, and it is said why.
    client.query("begin");
    client.query("select 1");
    let mut other = Client::login(ambassador.port, &LOGIN);
    let error = other.try_query("select 1").err().unwrap();
    assert_eq!(error.code(), "08001", "{error:?}");
    assert!(error.field(b'D').unwrap().contains("expired"), "{error:?}");
    assert_eq!(ambassador.http("/readyz").0, 200);
    web.set_down(false);
    wait_until("there are tokens again", || other.try_query("select 1").is_ok());
    assert_eq!(client.value("select 1"), "1");
    assert_eq!(checker.counts().1, 0);
}

#[test]
fn f9_a_token_that_was_revoked_early_costs_each_login_one_more_attempt_and_all_of_them_one_fetch() {
    let place = Place::new();
    let keys = Keys::default();
    let (web, checker) = (container(&keys, HOUR), place.rds(&keys));
    let args = [&place.rds_url(checker.port), "--pool-size", "8"];
    let ambassador = Ambassador::start_with(&args, &borrow(&container_env(&web)));
    works(&ambassador);
    assert_eq!((checker.counts(), web.asked().len()), ((1, 0), 1));
    keys.revoke_all();
    ambassador.show("VERSION");
    Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]).query("RECONNECT");
    let mut clients: Vec<Client> = (0..8).map(|_| Client::login(ambassador.port, &LOGIN)).collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                client.query("begin");
                client.query("select pg_sleep(0.05)");
                client.query("commit");
            });
        }
    });
    let (accepted, refused) = checker.counts();
    assert!(accepted > 1 && refused < accepted, "{accepted} accepted, {refused} refused");
    assert_eq!(web.asked().len(), 2, "one fetch for all");
    assert!(ambassador.metric("pg_ambassador_credential_refusals_total") >= 1.0);
}

#[test]
fn a_primary_and_replicas_in_other_regions_each_have_tokens_of_their_own_through_renewals() {
    const REGIONS: [&str; 3] = ["eu-west-1", "us-east-1", "ap-south-1"];
    let place = Place::new();
    let keys = Keys::default();
    let web = container(&keys, Duration::from_secs(4));
    let cluster = cluster(&Options { replicas: 2, ..Options::default() });
    let checkers: Vec<Checker> = (0..3)
        .map(|at| {
            let keys = keys.clone();
            let name = format!("db{at}.abc123.{}.rds.amazonaws.com", REGIONS[at]);
            let check = move |user: &str, token: &str| keys.check(token, (&name, 5432, REGIONS[at]), user);
            Checker::start(&place.pair, cluster.nodes[at].port, check)
        })
        .collect();
    let hosts: Vec<String> = checkers.iter().map(|checker| format!("127.0.0.1:{}", checker.port)).collect();
    let names: Vec<String> = (0..3).map(|at| format!("db{at}.abc123.{}.rds.amazonaws.com", REGIONS[at])).collect();
    let url = format!(
        "postgres://{}/?sslrootcert={}/root.crt&credentials=aws_rds_iam&iam_host={}&iam_port=5432",
        hosts.join(","),
        place.dir.path().display(),
        names.join(",")
    );
    let args = [url.as_str(), "--set", "server_lifetime=1s", "--set", "consistency=eventual"];
    let ambassador = Ambassador::start_with(&args, &borrow(&container_env(&web)));
    let mut client = Client::login(ambassador.port, &LOGIN);
    client.query("create table written (n int)");
    let mut ports = HashSet::new();
    let tokens = |checker: &Checker| {
        let accepted = checker.seen().into_iter().filter(|login| login.accepted);
        accepted.map(|login| login.password).collect::<HashSet<String>>().len()
    };
    wait_until("each has seen three tokens", || {
        client.query("insert into written values (1)");
        ports.insert(client.value("select inet_server_port()"));
        checkers.iter().all(|checker| tokens(checker) >= 3) && ports.len() >= 2
    });
    for checker in &checkers {
        assert_eq!(checker.counts().1, 0, "{:?}", checker.seen().iter().find(|login| !login.accepted));
    }
    // One set of keys signs for all regions.
    assert_eq!(ambassador.show("CREDENTIALS").len(), 4, "{:?}", ambassador.show("CREDENTIALS"));
}

// ----------------------------------------------------------------------------------------------------- the token itself

#[test]
fn the_token_command_prints_a_token_that_logs_in() {
    let keys = Keys::with("AKIDENV", "env/secret+");
    let token = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pg-ambassador"));
        command.arg("token").args(args).env_clear().envs(env.iter().copied()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.output().unwrap()
    };
    let env = [("AWS_ACCESS_KEY_ID", "AKIDENV"), ("AWS_SECRET_ACCESS_KEY", "env/secret+")];
    let args = ["--host", HOST, "--port", "5432", "--user", "app user@x", "--region", "eu-west-1"];
    let output = token(&args, &env);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    keys.check(printed.strip_suffix('\n').unwrap(), ENDPOINT, "app user@x").unwrap();
    // The region is in the name.
    let output = token(&args[..6], &env);
    keys.check(String::from_utf8(output.stdout).unwrap().trim(), ENDPOINT, "app user@x").unwrap();
    let output = token(&args, &[]);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("AWS credentials"));
}

#[test]
fn what_keeps_aws_from_giving_keys_is_explained_in_one_line() {
    let dir = Dir::new();
    let web_token = dir.write("web-token", "a wrong one").display().to_string();
    let sts = Web::start(|asked| {
        let code = if asked.body.contains("role%2Fdenied") { "AccessDenied" } else { "ExpiredTokenException" };
        (
            403,
            Vec::new(),
            format!("<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"),
        )
    });
    let url = sts.url();
    let explained = |env: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pg-ambassador"));
        command.args(["token", "--host", HOST, "--user", "app"]).env_clear().env("AWS_EC2_METADATA_DISABLED", "true");
        let output = command.envs(env.iter().copied()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let role = |name: &'static str| {
        [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", web_token.as_str()),
            ("AWS_ROLE_ARN", name),
            ("AWS_ENDPOINT_URL_STS", url.as_str()),
        ]
    };
    for (env, words) in [
        (&role("arn:aws:iam::123456789012:role/denied")[..], "trust policy"),
        (&role("arn:aws:iam::123456789012:role/late")[..], "clock skew"),
        (&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/x")], "TOKEN_FILE"),
        (&[], "Ec2InstanceMetadata: IMDS disabled"),
    ] {
        let said = explained(env);
        assert!(said.contains(words) && said.lines().count() == 1, "{words}: {said}");
    }
}

#[test]
fn a_thousand_random_tokens_are_those_that_botocore_signs() {
    let Some(mut python) = python("botocore.session") else {
        return skip("tokens beside botocore's", "botocore is not there (scripts/drivers aws)");
    };
    let mut random = Random::new(5);
    let alphabet: Vec<char> = "abcXYZ019-._~ @+/%&=?#:é\u{4e2d}\u{1f600}'\"".chars().collect();
    let text = |random: &mut Random, most: usize| -> String {
        (0..1 + random.below(most)).map(|_| *random.choose(&alphabet)).collect()
    };
    let cases: Vec<serde_json::Value> = (0..1000)
        .map(|_| {
            let region = *random.choose(&["eu-west-1", "us-gov-east-1", "cn-north-1", "ap-southeast-2"]);
            let session = if random.one_in(2) { Some(text(&mut random, 300)) } else { None };
            serde_json::json!({
                "host": format!("db{}.abc.{region}.rds.amazonaws.com", random.below(1000)),
                "port": 1 + random.below(65535),
                "region": region,
                "user": text(&mut random, 63),
                "epoch": 1_000_000_000 + random.below(1_500_000_000),
                "akid": format!("AKID{}", random.below(1_000_000)),
                "secret": text(&mut random, 40),
                "session": session,
            })
        })
        .collect();
    let dir = Dir::new();
    let input = dir.write("cases.json", &serde_json::to_string(&cases).unwrap());
    let output = python.arg("tests/drivers/rds_tokens.py").arg(input).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(theirs.len(), cases.len());
    for (case, theirs) in cases.iter().zip(theirs) {
        let text = |name: &str| case[name].as_str().map(str::to_owned);
        let keys = aws_credential_types::Credentials::new(
            text("akid").unwrap(),
            text("secret").unwrap(),
            text("session"),
            None,
            "a test",
        );
        let port = u16::try_from(case["port"].as_u64().unwrap()).unwrap();
        let endpoint = Endpoint { host: text("host").unwrap(), port, region: text("region").unwrap() };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(case["epoch"].as_u64().unwrap());
        let ours = aws::token(&endpoint, &text("user").unwrap(), &keys, now).unwrap();
        let query = |token: &str| -> (String, BTreeMap<String, String>) {
            let (place, query) = token.split_once("/?").unwrap();
            let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap());
            (place.to_owned(), pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
        };
        assert_eq!(query(ours.expose()), query(&theirs), "{case}");
    }
}
