#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are spelt as they are")]

use super::*;

/// A database that has a little of everything.
struct Shop;

static SHOP_LENGTHS: Lengths = Lengths::of_lines("order_log\nvolatile_fn\nodd_domain\nstats");

impl Objects for Shop {
    fn is_bare(&self) -> bool {
        false
    }

    fn lengths(&self) -> &Lengths {
        &SHOP_LENGTHS
    }

    fn suspects(&self, schema: Option<&[u8]>, name: &[u8]) -> bool {
        match name {
            b"order_log" | b"odd_domain" => true,
            b"stats" => schema.is_none_or(|schema| schema == b"audit"),
            _ => false,
        }
    }

    fn function(&self, schema: Option<&[u8]>, name: &[u8]) -> Trust {
        match (schema, name) {
            (None | Some(b"public"), b"volatile_fn") => Trust::Suspect,
            (None | Some(b"public" | b"geo"), b"stable_fn") => Trust::Plain,
            _ => Trust::Unknown,
        }
    }

    fn operator(&self, token: &[u8]) -> bool {
        token.windows(3).any(|part| part == b"<!>")
    }
}

/// What a text is taken for: `read`, `cursor`, or why not, with the name that is to blame.
fn verdict(text: &str) -> String {
    let say =
        |why: &str, span: Span| format!("{why} {}", String::from_utf8_lossy(span.of(text.as_bytes()))).to_lowercase();
    match access(text.as_bytes(), true, &Shop).run {
        Run::Read => "read".into(),
        Run::Cursor => "cursor".into(),
        Run::Write(Why::Command(span)) => say("command", span),
        Run::Write(Why::Function(span)) => say("function", span),
        Run::Write(Why::UnknownFunction(span)) => say("unknown", span),
        Run::Write(Why::Object(span)) => say("object", span),
        Run::Write(Why::Operator(span)) => say("operator", span),
        Run::Write(why) => format!("{why:?}").to_lowercase(),
    }
}

const STATEMENTS: &[(&str, &str)] = &[
    ("", "read"),
    (" ; -- nothing\n;", "read"),
    ("select 1", "read"),
    ("SELECT a, b FROM t WHERE id = $1 ORDER BY a LIMIT 10", "read"),
    ("(select 1) union all (select 2)", "read"),
    ("values (1, 2), (3, 4)", "read"),
    ("table t", "read"),
    ("with x as (select 1) select * from x", "read"),
    ("with recursive x(n) as (values (1) union all select n + 1 from x where n < 9) select sum(n) from x", "read"),
    ("with a as (select 1), b(x, y) as materialized (select 1, 2) select * from a, b", "read"),
    ("with a as (select 1), b(x) as (select 2) (select * from a)", "read"),
    ("with a as (select 1) select 1, mystery(1)", "unknown mystery"),
    ("with a as (select 1) (select 1), mystery(1)", "unknown mystery"),
    ("select * from f1(1) with ordinality, mystery(2)", "unknown f1"),
    ("select * from unnest($1) with ordinality, mystery(2)", "unknown mystery"),
    (
        "select count(*), max(x), coalesce(a, nullif(b, 0)) from t group by (a), grouping sets ((a), (b)), rollup (a)",
        "read",
    ),
    (
        "select row_number() over (partition by (a) order by (b) rows between 1 preceding and current row) from t",
        "read",
    ),
    ("select count(*) filter (where x in (1, 2)), percentile_cont(0.5) within group (order by y) from t", "read"),
    ("select sum(x) over w from t window w as (partition by y)", "read"),
    ("select * from (values (1, 'a')) as v(id, name) join lateral (select 1) w(x) on (true)", "read"),
    ("select * from generate_series(1, 10) g(i), t u(a, b)", "read"),
    ("select * from json_to_recordset('[]') as x(a int, b numeric(10, 2), c varchar(5))", "read"),
    ("select cast(x as numeric(10, 2)), y::varchar(3), z::character varying(9), interval '1' second(3) from t", "read"),
    (
        "select extract(year from d), overlay(a placing b from 1 for 2), substring(a from 1 for 2), trim(both from c)",
        "read",
    ),
    ("select exists (select 1), array(select 1), array[f.x], (1, 2) overlaps (3, 4), not (true), x = any ($1)", "read"),
    ("select inet(a), tsquery('b'), regtype('int4'), timestamptz(c) from t", "read"),
    ("select current_user, current_timestamp, current_timestamp(0), localtime(2)", "read"),
    ("select * from t tablesample bernoulli (10) repeatable (1)", "read"),
    ("select random(), clock_timestamp(), gen_random_uuid(), pg_sleep(1), pg_database_size('x')", "read"),
    ("select pg_catalog.lower('A'), pg_catalog.count(*)", "read"),
    ("select stable_fn(1), public.stable_fn(1), geo . stable_fn /* x */ (1)", "read"),
    (
        "select 'insert into t; for update', $$nextval('s')$$, $x$ update $x$, e'\\' into t' -- delete\n /* merge */",
        "read",
    ),
    ("select t.update, t.delete, t.into from t", "read"),
    ("select a.no, a.key, share from a", "read"),
    ("select stats.id from public.stats", "object stats"),
    ("select id from public.stats", "read"),
    ("select id from audit.stats", "object stats"),
    ("select id from stats", "object stats"),
    ("show all", "read"),
    ("show search_path", "read"),
    ("show transaction_read_only", "role"),
    ("show \"in_hot_standby\"", "role"),
    ("select pg_is_in_recovery()", "function pg_is_in_recovery"),
    ("explain select 1", "read"),
    ("explain analyze verbose select 1", "read"),
    ("explain (analyze, format json) select 1", "read"),
    ("explain (select 1)", "read"),
    ("explain (costs off) (select 1)", "read"),
    ("explain analyze insert into t values (1)", "command insert"),
    ("explain (analyze) with x as (delete from t returning *) select * from x", "modifies"),
    ("explain execute s", "command execute"),
    ("explain analyze select volatile_fn()", "function volatile_fn"),
    ("copy t to stdout", "read"),
    ("COPY public.t (a, b) TO STDOUT (FORMAT csv, FORCE_QUOTE (a))", "read"),
    ("copy (select 1) to stdout with (format binary)", "read"),
    ("copy (insert into t values (1) returning *) to stdout", "modifies"),
    ("copy (select volatile_fn()) to stdout", "function volatile_fn"),
    ("copy order_log to stdout", "object order_log"),
    ("copy t to '/tmp/x'", "copy"),
    ("copy t to program 'cat'", "copy"),
    ("copy t from stdin", "copy"),
    ("copy binary t to stdout", "copy"),
    ("declare c cursor for select 1", "cursor"),
    ("declare c no scroll cursor without hold for select * from t", "cursor"),
    ("declare c cursor with hold for select 1", "session"),
    ("declare c cursor for select * from t for update", "locking"),
    ("declare c cursor for select volatile_fn()", "function volatile_fn"),
    ("fetch 10 from c", "cursor"),
    ("move forward all in c", "cursor"),
    ("close c", "cursor"),
    ("select 1; fetch all from c", "cursor"),
    ("select * from t for update", "locking"),
    ("select * from t for no key update of t nowait", "locking"),
    ("select * from t for share skip locked", "locking"),
    ("select * from t FOR /* x */ KEY SHARE", "locking"),
    ("select * from (select * from t for share) x", "locking"),
    ("select * into x from t", "into"),
    ("select 1into t", "unclear"),
    ("select 1 as one, 0x1F, 1.5e3, 1., .5", "read"),
    ("select * into temp x from t", "into"),
    ("with x as (insert into t values (1) returning *) select * from x", "modifies"),
    ("with x as (select 1), y as (update t set a = 1 returning *) table y", "modifies"),
    ("with x as (select 1) delete from t", "modifies"),
    ("with x as (select 1) merge into t using x on true when matched then do nothing", "modifies"),
    ("with recursive t as (select 1 as id) search depth first by id set o delete from x", "modifies"),
    ("select nextval('s')", "function nextval"),
    ("select pg_catalog.nextval('s')", "function nextval"),
    ("select \"nextval\"('s')", "function nextval"),
    ("select NextVal /* x */ ('s')", "function nextval"),
    ("select ('s'::regclass).nextval", "function nextval"),
    ("select (s).\"nextval\", 1 from s", "function nextval"),
    ("select x.setseed from x", "function setseed"),
    ("select U&\"\\006eextval\"('s')", "unclear"),
    ("select \"a\"\"b\" from t", "unclear"),
    ("select nextval from t", "read"),
    ("select public.nextval(1)", "unknown nextval"),
    ("select currval('s')", "function currval"),
    ("select set_config('a.b', 'c', true)", "function set_config"),
    ("select pg_advisory_lock(1)", "function pg_advisory_lock"),
    ("select pg_try_advisory_xact_lock(1)", "function pg_try_advisory_xact_lock"),
    ("select pg_notify('a', 'b')", "function pg_notify"),
    ("select txid_current()", "function txid_current"),
    ("select lo_get(1)", "function lo_get"),
    ("select query_to_xml('delete from t', true, true, '')", "function query_to_xml"),
    ("select table_to_xml('v', true, true, '')", "function table_to_xml"),
    ("select pg_current_wal_lsn()", "function pg_current_wal_lsn"),
    ("select pg_terminate_backend(1)", "function pg_terminate_backend"),
    ("select * from dblink('x', 'y')", "unknown dblink"),
    ("select volatile_fn()", "function volatile_fn"),
    ("select public.volatile_fn(1)", "function volatile_fn"),
    ("select x.volatile_fn from x", "function volatile_fn"),
    ("select * from t volatile_fn(a)", "function volatile_fn"),
    ("select mystery(1)", "unknown mystery"),
    ("select distinct on (a) mystery(1) from t", "unknown mystery"),
    ("select 1 operator(pg_catalog.+) mystery(1)", "unknown mystery"),
    ("select * from t where a and mystery(1)", "unknown mystery"),
    ("select geo.over(1)", "unknown over"),
    ("select 1 <!> 2", "operator <!>"),
    ("select 1 operator(public.<!>) 2", "operator <!>"),
    ("select 1 <!>- 2", "operator <!>-"),
    ("select * from order_log", "object order_log"),
    ("select * from Public.ORDER_LOG l", "object order_log"),
    ("select 'x'::odd_domain", "object odd_domain"),
    ("select * from \"Order_Log\"", "read"),
    ("select * from pg_prepared_statements", "session"),
    ("select * from pg_catalog.pg_cursors", "session"),
    ("select * from pg_stat_activity", "role"),
    ("select * from pg_catalog.pg_stat_progress_create_index", "role"),
    ("select gid from pg_prepared_xacts", "role"),
    ("table Pg_Locks", "role"),
    ("select * from pg_stats", "read"),
    ("select * from pg_temp.x", "session"),
    ("select * from \"pg_temp_3\".x", "unclear"),
    ("select pg_temp.f(1)", "session"),
    ("select 1; select 2", "read"),
    ("select 1; insert into t values (1)", "command insert"),
    ("delete from t; select 1", "command delete"),
    ("begin; select 1; commit", "transaction"),
    ("begin read only", "transaction"),
    ("savepoint a", "transaction"),
    ("set search_path to x", "setting"),
    ("set transaction read only", "transaction"),
    ("reset all", "setting"),
    ("prepare s as select 1", "session"),
    ("execute s", "session"),
    ("discard all", "session"),
    ("listen c", "session"),
    ("notify c", "command notify"),
    ("lock table t in access share mode", "locking"),
    ("insert into t values (1)", "command insert"),
    ("create table t ()", "command create"),
    ("do $$ begin end $$", "command do"),
    ("call p()", "command call"),
    ("vacuum", "command vacuum"),
    ("checkpoint", "command checkpoint"),
    ("analyze t", "command analyze"),
    ("refresh materialized view m", "command refresh"),
    ("'x'", "command '"),
    ("\"select\" 1", "command \""),
    ("selectx 1", "command selectx"),
    ("select 'unterminated", "unclear"),
    ("select 1 /* /* */", "unclear"),
    ("select 1 \\ 2", "unclear"),
];

#[test]
fn only_what_is_proven_to_read_is_a_read() {
    for (text, expected) in STATEMENTS {
        assert_eq!(verdict(text), *expected, "{text}");
    }
}

/// Chance that is the same every time: xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// The same tokens, otherwise spelt: with other white space, comments, and letters.
fn respelt(text: &str, random: &mut Chance) -> String {
    let mut lexer = Lexer::new(text.as_bytes(), true);
    let mut out = String::new();
    let mut from = 0;
    loop {
        let token = lexer.next_token();
        let piece = text[from..lexer.offset()].trim_start();
        // What the lexer skipped in front of the token stays as it was, where it is a comment.
        match token {
            Token::Word(word) => {
                let at = piece.len() - word.len();
                out.push_str(&piece[..at]);
                out.extend(
                    piece[at..]
                        .chars()
                        .map(|c| if random.flip() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }),
                );
            }
            Token::Broken => {
                out.push_str(&text[from..]);
                return out;
            }
            // Right behind an operator no comment begins.
            Token::Operator(_) => out.push_str(&format!("{piece} ")),
            Token::Quoted(_) | Token::Str(..) | Token::Number(_) | Token::Param | Token::Punct(_) | Token::End => {
                out.push_str(piece);
            }
        }
        if token == Token::End {
            return out;
        }
        from = lexer.offset();
        // Between tokens that stand without a blank there may be none: `1into`, `<!>-`.
        let apart =
            text[from..].starts_with([' ', '(', ')', ',', ';', '.']) || text[..from].ends_with(['(', ')', ',', '.']);
        if apart {
            out.push_str(
                ["", " ", "\t\n", "/**/", " /* select ' ; \" /* for update */ */ ", "-- nextval('\n"][random.below(6)],
            );
            if text[from..].starts_with(' ') {
                out.push(' ');
            }
        }
    }
}

#[test]
fn comments_case_and_white_space_never_change_the_answer() {
    let mut random = Chance(4);
    for (text, expected) in STATEMENTS {
        for _ in 0..50 {
            let other = respelt(text, &mut random);
            assert_eq!(verdict(&other), *expected, "{text}\n{other}");
        }
    }
}

#[test]
fn any_part_of_any_text_is_looked_at_without_harm() {
    let mut random = Chance(5);
    let all: Vec<u8> = STATEMENTS.iter().flat_map(|(text, _)| [text.as_bytes(), b" "].concat()).collect();
    for _ in 0..20_000 {
        let start = random.below(all.len());
        let mut part = all[start..(start + random.below(200)).min(all.len())].to_vec();
        if let Some(at) = (!part.is_empty()).then(|| random.below(part.len())) {
            part[at] = u8::try_from(random.below(256)).unwrap();
        }
        access(&part, random.flip(), &Shop);
    }
}

#[test]
fn what_is_unknown_never_becomes_a_read() {
    let mut random = Chance(6);
    let mut word = || -> String {
        std::iter::repeat_with(|| char::from(b'a' + u8::try_from(random.below(26)).unwrap())).take(12).collect()
    };
    for _ in 0..2_000 {
        let name = word();
        for text in [
            format!("{name} t"),
            format!("select {name}(1)"),
            format!("select * from t where x = {name} (y)"),
            format!("select 1, {name}()"),
            format!("select * from {name}(1) as x(a)"),
            format!("select \"{name}\"(1)"),
            format!("select a.{name}(1)"),
            format!("select (case when {name}(1) then 1 end)"),
            format!("copy (values ({name}())) to stdout"),
        ] {
            assert!(matches!(access(text.as_bytes(), true, &Plain).run, Run::Write(_)), "{text}");
        }
    }
}

#[test]
fn what_is_too_long_or_too_deep_is_no_read() {
    let long = format!("select '{}'", "x".repeat(MAX_TEXT));
    assert_eq!(access(long.as_bytes(), true, &Plain).run, Run::Write(Why::TooLong));
    let nested = |depth: usize| format!("select {}1{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(access(nested(MAX_DEPTH - 1).as_bytes(), true, &Plain).run, Run::Read);
    assert_eq!(access(nested(MAX_DEPTH).as_bytes(), true, &Plain).run, Run::Write(Why::TooDeep));
    assert_eq!(verdict(&format!("select {}", "n".repeat(64))), "unclear");
}

#[test]
fn backslashes_are_escapes_where_the_session_has_it_so() {
    let text = br"select '\', mystery(), '";
    assert!(matches!(access(text, true, &Plain).run, Run::Write(_)));
    assert_eq!(access(br"select '\'', lower(''), ''", false, &Plain).run, Run::Read);
    assert_eq!(access(br"select '\', nextval(), '", false, &Plain).run, Run::Read);
}

#[test]
fn what_a_statement_does_to_the_transaction_is_told() {
    let modes = |read_only, serializable| Modes { read_only, serializable, others: false };
    let end = |commits, chains| Transaction::End { commits, chains };
    for (text, statements, expected) in [
        ("select 1", 1, None),
        ("begin", 1, Some(Transaction::Begin(modes(None, None)))),
        ("BEGIN WORK READ ONLY;", 1, Some(Transaction::Begin(modes(Some(true), None)))),
        (
            "start transaction isolation level serializable, read only, deferrable",
            1,
            Some(Transaction::Begin(modes(Some(true), Some(true)))),
        ),
        (
            "begin isolation level repeatable read read write",
            1,
            Some(Transaction::Begin(modes(Some(false), Some(false)))),
        ),
        ("begin read only; select 1", 2, Some(Transaction::Begin(modes(Some(true), None)))),
        ("set transaction read only", 1, Some(Transaction::Set(modes(Some(true), None)))),
        (
            "set transaction snapshot '1'",
            1,
            Some(Transaction::Set(Modes { read_only: None, serializable: None, others: true })),
        ),
        ("set transaction.x = 1", 1, None),
        ("set transaction_read_only = on", 1, None),
        (
            "set session characteristics as transaction read only, isolation level read committed",
            1,
            Some(Transaction::Default(modes(Some(true), Some(false)))),
        ),
        ("commit", 1, Some(end(true, false))),
        ("end work and chain", 1, Some(end(true, true))),
        ("rollback and no chain", 1, Some(end(false, false))),
        ("abort transaction and chain", 1, Some(end(false, true))),
        ("rollback to a", 1, Some(Transaction::Savepoint)),
        ("rollback work to savepoint a", 1, Some(Transaction::Savepoint)),
        ("savepoint a", 1, Some(Transaction::Savepoint)),
        ("release a", 1, Some(Transaction::Savepoint)),
        ("prepare transaction 'x'", 1, Some(Transaction::TwoPhase)),
        ("commit prepared 'x'", 1, Some(Transaction::TwoPhase)),
        ("rollback prepared 'x'", 1, Some(Transaction::TwoPhase)),
        ("insert into t values (';'); commit; select 1", 3, None),
    ] {
        let found = access(text.as_bytes(), true, &Plain);
        assert_eq!((found.statements, found.transaction), (statements, expected), "{text}");
    }
    assert!(modes(Some(true), None).allow_replica(false, false));
    assert!(modes(None, None).allow_replica(true, false));
    assert!(!modes(None, None).allow_replica(false, false));
    assert!(!modes(Some(true), None).allow_replica(false, true));
    assert!(!modes(Some(true), Some(true)).allow_replica(false, false));
}
