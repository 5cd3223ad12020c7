//! What `tests/regress/reads` asks: where texts may run. Requests come on stdin, answers go to stdout, one line each.
//!
//! A request is a letter, the length of its body in four bytes, and the body. `C`: rows of the catalogue's query, for a
//! database's name in the first field; fields end with 0x1f, rows with 0x1e. `Q`: the name of the database, 0x1f, whether
//! `standard_conforming_strings` is on, 0x1f, and a text. `P`: names of functions that are vouched for, with commas between;
//! the answer is the catalogue's query with its parameters in it.

use pg_ambassador::routing::{Catalogue, catalogue};
use pg_ambassador::sql::access;
use pg_ambassador::sql::reads::{Run, Span, Why};
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};

const FIELD: char = '\u{1f}';
const ROW: char = '\u{1e}';

fn catalogue_of(body: &str) -> Catalogue {
    Catalogue::from_rows(body.split_terminator(ROW).filter_map(|row| {
        let mut fields = row.split(FIELD);
        Some((fields.next()?, fields.next()?, fields.next()?, fields.next()? == "t"))
    }))
}

fn query(vouched: &str) -> String {
    catalogue::parameters(vouched.split(','))
        .map(|names| format!("'{{{}}}'", names.join(",")))
        .iter()
        .enumerate()
        .fold(catalogue::QUERY.to_owned(), |query, (at, value)| query.replace(&format!("${}", at + 1), value))
}

fn verdict(text: &[u8], standard_strings: bool, catalogue: &Catalogue) -> String {
    let found = access(text, standard_strings, catalogue);
    let say = |why: &str, span: Span| format!("write\t{why}\t{}", String::from_utf8_lossy(span.of(text)));
    let verdict = match found.run {
        Run::Read => "read\t\t".to_owned(),
        Run::Cursor => "cursor\t\t".to_owned(),
        Run::Write(Why::Command(span)) => say("Command", span),
        Run::Write(Why::Function(span)) => say("Function", span),
        Run::Write(Why::UnknownFunction(span)) => say("UnknownFunction", span),
        Run::Write(Why::Object(span)) => say("Object", span),
        Run::Write(Why::Operator(span)) => say("Operator", span),
        Run::Write(why) => format!("write\t{why:?}\t"),
    };
    verdict.replace('\n', " ")
}

fn main() -> io::Result<()> {
    let (mut input, mut output) = (BufReader::new(io::stdin()), io::stdout());
    let mut catalogues: HashMap<Vec<u8>, Catalogue> = HashMap::new();
    loop {
        let mut head = [0; 5];
        if input.read_exact(&mut head).is_err() {
            return Ok(());
        }
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = Vec::new();
        input.by_ref().take(len.into()).read_to_end(&mut body)?;
        let (database, rest) = body.split_at(body.iter().position(|&b| b == 0x1f).unwrap_or(body.len()));
        let rest = rest.get(1..).unwrap_or_default();
        let answer = match head[0] {
            b'P' => query(&String::from_utf8_lossy(database)).replace('\n', "\u{1e}"),
            b'C' => {
                catalogues.insert(database.to_vec(), catalogue_of(&String::from_utf8_lossy(rest)));
                "ok".to_owned()
            }
            _ => match (catalogues.get(database), rest) {
                (Some(catalogue), [standard, 0x1f, text @ ..]) => verdict(text, *standard == b't', catalogue),
                _ => "write\tNoCatalogue\t".to_owned(),
            },
        };
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
}
