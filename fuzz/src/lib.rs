//! What is fuzzed, and what must hold for any input; one function for each target.

pub mod conversation;
pub mod mutate;

use conversation::{Ended, Random, Rig};
use pg_ambassador::auth::UserList;
use pg_ambassador::auth::scram::{Binding, ClientFirst, ServerExchange, Verifier};
use pg_ambassador::config::{self, Sources};
use pg_ambassador::session::{PoolMode, Violation};
use pg_ambassador::sql;
use pg_ambassador::wire::frame::{self, HEADER};
use pg_ambassador::wire::startup::{self, Hello};
use pg_ambassador::wire::{FrontendTag, backend, frontend, reply};

/// Something that is fuzzed.
pub struct Target {
    pub name: &'static str,
    /// Panics where something does not hold.
    pub run: fn(&[u8]),
    /// An input to start from.
    pub seed: fn(&mut Random) -> Vec<u8>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "client", run: client, seed: seed_client },
    Target { name: "server", run: server, seed: seed_server },
    Target { name: "conversation", run: whole_conversation, seed: seed_bytes },
    Target { name: "frames", run: frames, seed: seed_frames },
    Target { name: "messages", run: messages, seed: seed_messages },
    Target { name: "startup", run: startup, seed: seed_startup },
    Target { name: "scram", run: scram, seed: seed_scram },
    Target { name: "sql", run: sql, seed: seed_sql },
    Target { name: "config", run: config, seed: seed_config },
];

/// A number that depends on all of the input.
fn hash(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn mode(byte: u8) -> PoolMode {
    match byte % 3 {
        0 => PoolMode::Transaction,
        1 => PoolMode::Session,
        _ => PoolMode::Statement,
    }
}

/// Offers bytes in pieces, cut where the random numbers fall.
fn in_pieces(data: &[u8], random: &mut Random, mut offer: impl FnMut(&[u8])) {
    let largest = 1 + random.below(64);
    let mut rest = data;
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at((1 + random.below(largest)).min(rest.len()));
        offer(piece);
        rest = tail;
    }
}

// ------------------------------------------------------------------------------------------------- the two directions

/// Any bytes from a client, cut anywhere, with a server that says nothing: both peers are sent the same.
pub fn client(data: &[u8]) {
    let Some((&flags, bytes)) = data.split_first() else { return };
    let new = || Rig::new(mode(flags), 1, 2, 1);
    let (mut whole, mut cut) = (new(), new());
    whole.client_sends(bytes);
    in_pieces(bytes, &mut Random::new(hash(data)), |piece| cut.client_sends(piece));
    if whole.has_waited() || cut.has_waited() {
        // Whether it has to wait depends on how much of a long message is there to be judged, and here it waits for ever.
        assert_same_so_far(whole.client_reads(), cut.client_reads(), "cuts decide what the client reads");
        let servers_read = |rig: &Rig| without_questions(rig.servers_read());
        return assert_same_so_far(&servers_read(&whole), &servers_read(&cut), "cuts decide what the server reads");
    }
    assert_same(&whole, &cut);
}

/// One has not got as far as the other.
fn assert_same_so_far(whole: &[u8], cut: &[u8], what: &str) {
    assert!(whole.starts_with(cut) || cut.starts_with(whole), "{what}: {}, {}", show(whole), show(cut));
}

/// Any bytes from a server in the middle of anything, cut anywhere: both peers are sent the same.
///
/// A byte, the length of what the client has sent before, that, and then the server's bytes.
pub fn server(data: &[u8]) {
    let Some(([flags, high, low], rest)) = data.split_first_chunk::<3>() else { return };
    let asked = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (client, bytes) = rest.split_at(asked);
    let new = || {
        let mut rig = Rig::new(mode(*flags), 1, 2, 1);
        rig.client_sends(client);
        rig
    };
    let (mut whole, mut cut) = (new(), new());
    whole.server_sends(bytes);
    in_pieces(bytes, &mut Random::new(hash(data)), |piece| cut.server_sends(piece));
    // A client that had to wait goes on as soon as it may, which depends on the cuts; what was read up to there does not.
    // And a server that was given back is not read any more: what it says then is found when it is lent the next time.
    if whole.has_waited() || cut.has_waited() || cut.has_released() {
        return;
    }
    assert_same(&whole, &cut);
}

fn assert_same(whole: &Rig, cut: &Rig) {
    assert_eq!(ending(whole), ending(cut), "cuts decide how it ends");
    assert_eq!(show(whole.client_reads()), show(cut.client_reads()), "cuts decide what the client reads");
    let servers_read = |rig: &Rig| show(&without_questions(rig.servers_read()));
    assert_eq!(servers_read(whole), servers_read(cut), "cuts decide what the server reads");
}

/// Without what the session asks in front of a transaction that could begin late: one of which not all has come does not. And
/// without what it has the server answer by, where it waits.
fn without_questions(mut bytes: &[u8]) -> Vec<u8> {
    let mut left = Vec::new();
    while let Ok(Some(found)) = frame::frontend(bytes) {
        let Some((message, rest)) = bytes.split_at_checked(found.len) else { break };
        let asks = message[HEADER..].starts_with(b"select reset_val from pg_catalog.pg_settings");
        if !asks && found.tag != FrontendTag::Flush {
            left.extend(message);
        }
        bytes = rest;
    }
    left.extend(bytes);
    left
}

/// How it ended; errors name a length or a type, which do not depend on the cuts either.
fn ending(rig: &Rig) -> Option<String> {
    rig.ended().map(|ended| match ended {
        Ended::Goodbye => "goodbye".to_owned(),
        Ended::Violation(Violation::Client(error)) => format!("client: {error}"),
        Ended::Violation(Violation::Server(error)) => format!("server: {error}"),
        Ended::Violation(Violation::Replay(report)) => format!("replay: {}", report.code),
        Ended::Violation(Violation::Begin(report)) => format!("begin: {}", report.code),
        Ended::Violation(Violation::Final(report)) => format!("final: {}", report.code),
        Ended::Violation(Violation::Ended(report)) => format!("ended: {}", report.code),
    })
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A conversation that makes sense reads the same through the session as directly.
pub fn whole_conversation(data: &[u8]) {
    let mut random = Random::new(hash(data));
    let client = conversation::client_stream(&mut random, 10);
    let (seed, largest) = (random.next(), [1, 7, 64, 4096][random.below(4)]);
    if let Some((directly, through)) = difference(&client, seed, largest) {
        let (client, seed) = smallest(&client, seed, largest).unwrap_or((client, seed));
        let (directly, through) = difference(&client, seed, largest).unwrap_or((directly, through));
        panic!(
            "the client sent {}, cut at most every {largest}, seed {seed}\n directly: {directly}\n through:  {through}",
            show(&client)
        );
    }
}

/// What is read directly and through the session, if it is not the same.
fn difference(client: &[u8], seed: u64, largest: usize) -> Option<(String, String)> {
    let directly = Ok(conversation::directly(client));
    let through = conversation::through_the_session(client, seed, largest);
    let show_all = |bytes: Result<Vec<u8>, String>| bytes.map_or_else(|error| error, |bytes| show(&bytes));
    (directly != through).then(|| (show_all(directly), show_all(through)))
}

/// The same difference with as few messages as possible.
fn smallest(client: &[u8], seed: u64, largest: usize) -> Option<(Vec<u8>, u64)> {
    let mut messages = Vec::new();
    let mut rest = client;
    while let Ok(Some(found)) = frame::frontend(rest) {
        let (message, tail) = rest.split_at_checked(found.len)?;
        messages.push(message);
        rest = tail;
    }
    let fails = |messages: &[&[u8]]| {
        let client = messages.concat();
        // Without its data a COPY makes no sense any more.
        let lost = b"unexpected message type";
        if conversation::directly(&client).windows(lost.len()).any(|w| w == lost) {
            return None;
        }
        let same = |seed: &u64| {
            std::panic::catch_unwind(|| difference(&client, *seed, largest)).is_ok_and(|found| found.is_some())
        };
        (seed..seed + 300).find(same)
    };
    let mut found = fails(&messages)?;
    let mut at = 0;
    while at < messages.len() {
        let without = [&messages[..at], &messages[at + 1..]].concat();
        match fails(&without) {
            Some(seed) => (found, messages) = (seed, without),
            None => at += 1,
        }
    }
    Some((messages.concat(), found))
}

// ------------------------------------------------------------------------------------------------------- single parts

/// A stream is cut into frames that lie side by side, and a run of rows ends where a frame ends.
pub fn frames(data: &[u8]) {
    let mut at = 0;
    while let Ok(Some(found)) = frame::frontend(&data[at..]) {
        assert!(found.len >= HEADER);
        at += found.len;
        if at >= data.len() {
            break;
        }
    }
    let run = frame::data_run(data);
    assert!(run <= data.len());
    let mut at = 0;
    while let Ok(Some(found)) = frame::backend(&data[at..]) {
        assert!(found.len >= HEADER);
        if at == run {
            break;
        }
        assert!(at < run, "a run ends in the middle of a frame");
        at += found.len;
        if at >= data.len() {
            break;
        }
    }
}

/// Every body that is looked into, read as every type.
pub fn messages(data: &[u8]) {
    let fields = backend::error(data);
    let mut written = Vec::new();
    let report = fields.report();
    report.write(&mut written);
    let again = backend::error(&written[HEADER..]);
    if std::str::from_utf8(fields.message).is_ok() {
        assert_eq!(again.message, fields.message, "an error says the same when it is written anew");
    }
    let _ = (fields.text(), backend::ready(data), backend::command_tag(data), backend::parameter_status(data));
    let _ = (backend::key_data(data), backend::authentication(data), backend::sasl_mechanisms(data).count());
    if let Ok(columns) = backend::row(data) {
        let mut again = Vec::new();
        reply::data_row(&mut again, &columns);
        assert_eq!(&again[HEADER..], data, "a row is written as it was read");
    }
    if let Ok(parse) = frontend::parse(data) {
        let mut again = Vec::new();
        reply::parse(&mut again, parse.name, parse.query, parse.types);
        assert_eq!(&again[HEADER..], data, "a Parse is written as it was read");
    }
    if let Ok(bind) = frontend::bind(data) {
        assert_eq!(bind.names_len, bind.portal.len() + bind.statement.len() + 2);
    }
    let _ = (frontend::named(data), frontend::query(data), frontend::sasl_initial(data), frontend::password(data));
}

/// First packets.
pub fn startup(data: &[u8]) {
    if let Ok(Some(len)) = startup::packet_len(data) {
        assert!((8..=startup::MAX_PACKET).contains(&len));
    }
    match Hello::parse(data) {
        Ok(Hello::Startup(found)) => {
            assert!(
                !found.user.is_empty() && !found.database.is_empty() && found.spoken_minor() <= startup::NEWEST_MINOR
            );
            for (name, value) in &found.settings {
                assert!(!name.contains('\0') && !value.contains('\0'));
            }
            if let Some(options) = &found.options {
                let _ = startup::options_settings(options);
            }
            let params = [("user", found.user.as_str()), ("database", found.database.as_str())];
            let params = params.into_iter().chain(found.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            if let Ok(again) = startup::message(params) {
                let Ok(Hello::Startup(again)) = Hello::parse(&again) else { panic!("it is not read back") };
                assert_eq!((again.user, again.database, again.settings), (found.user, found.database, found.settings));
            }
        }
        Ok(Hello::Cancel(key)) => assert_eq!(Hello::parse(&key.request()), Ok(Hello::Cancel(key))),
        Ok(Hello::Tls | Hello::Gss) | Err(_) => {}
    }
}

/// Both sides of SCRAM; whatever a peer sends, nobody is let in.
pub fn scram(data: &[u8]) {
    let verifier = || Verifier::mock("u", &[0; 32]);
    let (first, last) = data.split_at(data.iter().position(|&b| b == b'\n').unwrap_or(data.len()));
    let last = last.get(1..).unwrap_or_default();
    for (end_point, plus) in [(None, false), (Some(b"hash".as_slice()), false), (Some(b"hash".as_slice()), true)] {
        if let Ok(exchange) = ServerExchange::start(first, verifier(), end_point, plus, "nonce") {
            assert!(exchange.finish(last).is_err(), "nobody knows this password");
        }
    }
    for binding in [Binding::None, Binding::NotOffered, Binding::EndPoint(b"hash")] {
        if let Ok(challenge) = ClientFirst::start(binding, "abc".into()).challenge(first) {
            assert!(challenge.iterations.get() <= 100_000 && challenge.salt.len() <= 1024);
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Some(verifier) = Verifier::parse(text) {
            assert_eq!(Verifier::parse(&verifier.to_string()), Some(verifier));
        }
        let _ = UserList::parse(text);
    }
}

/// The words of a text account for all of it, in order, and are judged without a panic.
pub fn sql(data: &[u8]) {
    for standard_strings in [true, false] {
        let mut lexer = sql::lexer::Lexer::new(data, standard_strings);
        let mut before = 0;
        loop {
            let token = lexer.next_token();
            if matches!(token, sql::lexer::Token::End | sql::lexer::Token::Broken) {
                break;
            }
            assert!(lexer.offset() > before && lexer.offset() <= data.len(), "a word has no length");
            before = lexer.offset();
        }
        let _ = sql::analyse(data, standard_strings);
    }
}

/// A configuration is accepted, or all that is wrong with it is said.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = config::File { path: "ambassador.toml".into(), text: text.to_owned() };
    for flags in [vec![], vec![("url".to_owned(), text.to_owned())]] {
        // Certificates and lists are read while resolving: nothing of this machine's is.
        if ["cert", "key", "ca", "file", "socket"].iter().any(|word| text.contains(word)) {
            return;
        }
        let sources = Sources { flags, file: Some(file.clone()), ..Sources::default() };
        match config::resolve(&sources) {
            Ok(config) => assert!(!config.settings.is_empty()),
            Err(faults) => assert!(!faults.is_empty(), "refused without a reason"),
        }
    }
    let _ = (config::units::duration(text), config::units::size(text));
}

// -------------------------------------------------------------------------------------------------------------- seeds

fn seed_bytes(random: &mut Random) -> Vec<u8> {
    random.next().to_be_bytes().to_vec()
}

fn seed_client(random: &mut Random) -> Vec<u8> {
    let mut data = vec![random.next().to_be_bytes()[0]];
    data.extend(conversation::client_stream(random, 8));
    data
}

fn seed_server(random: &mut Random) -> Vec<u8> {
    let client = conversation::client_stream(random, 6);
    let server =
        if random.one_in(3) { conversation::server_stream(random, 8) } else { conversation::directly(&client) };
    let asked = u16::try_from(client.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[random.next().to_be_bytes()[0]], &asked[..], &client, &server].concat()
}

fn seed_frames(random: &mut Random) -> Vec<u8> {
    if random.one_in(2) {
        return conversation::client_stream(random, 4);
    }
    let mut data = Vec::new();
    for _ in 0..random.below(6) {
        reply::data_row(&mut data, &[Some(b"x"), None]);
    }
    data.extend(conversation::server_stream(random, 3));
    data
}

fn seed_messages(random: &mut Random) -> Vec<u8> {
    let stream = seed_frames(random);
    stream.get(HEADER..).unwrap_or_default().to_vec()
}

fn seed_startup(random: &mut Random) -> Vec<u8> {
    const WORDS: &[&str] =
        &["user", "database", "options", "replication", "_pq_.x", "a", "-c a=b", "--x-y=z\\ ", "true", "0", ""];
    let params: Vec<_> = (0..random.below(6)).map(|_| (*random.choose(WORDS), *random.choose(WORDS))).collect();
    let mut packet = startup::message([("user", "u")].into_iter().chain(params)).unwrap_or_default();
    if random.one_in(4) {
        packet = startup::CancelKey { pid: 1, secret: vec![7; 1 + random.below(300)].into() }.request();
    }
    packet
}

fn seed_scram(random: &mut Random) -> Vec<u8> {
    const SEEDS: &[&str] = &[
        "n,,n=,r=abc\nc=biws,r=abcnonce,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "p=tls-server-end-point,,n=,r=abc\nc=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsaGFzaA==,r=abcnonce,p=AAAA",
        "r=abcd,s=AAAA,i=4096",
        "SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "\"ann\" \"pa\"\"ss\"\n; x\n\"bob\" \"md50123456789abcdef0123456789abcdef\"",
    ];
    random.choose(SEEDS).as_bytes().to_vec()
}

fn seed_sql(random: &mut Random) -> Vec<u8> {
    const PARTS: &[&str] = &[
        "select",
        "set",
        "local",
        "begin",
        "commit",
        ";",
        "'a''b'",
        "E'\\''",
        "$x$ y $x$",
        "$1",
        "\"q\"\"\"",
        "--c\n",
        "/* /* */ */",
        "U&'\\0041'",
        "b'1'",
        "x'f'",
        "1.5e-3",
        "::",
        "(",
        ")",
        "with",
        "as",
        "insert",
        "prepare",
        "copy",
        "temp",
        "table",
        "create",
        "function",
        "language",
        "listen",
        "discard",
        "all",
        "=",
        "to",
        "é",
        "\u{0}",
        ",",
    ];
    let words: Vec<_> = (0..random.below(24)).map(|_| *random.choose(PARTS)).collect();
    words.join([" ", "", "\n"][random.below(3)]).into_bytes()
}

fn seed_config(random: &mut Random) -> Vec<u8> {
    const LINES: &[&str] = &[
        "url = \"postgres://a:b@h:1,g/d?sslmode=require&connect_timeout=3\"",
        "pool_size = 3",
        "pool_mode = \"session\"",
        "checkout_timeout = \"30s\"",
        "listen = [\"127.0.0.1:0\", \"[::1]:5\"]",
        "log.level = \"info\"",
        "[databases.x]",
        "hosts = [\"a:1\", \"b\"]",
        "[users.u]",
        "max_clients = 0",
        "postgres://%61@[::1]:5/d?options=-c%20a%3Db",
        "unknown = { a = [1, 2.5, 1979-05-27] }",
    ];
    let lines: Vec<_> = (0..=random.below(8)).map(|_| *random.choose(LINES)).collect();
    lines.join("\n").into_bytes()
}
