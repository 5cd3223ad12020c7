//! Requests that concern the ambassador, not the server: they are answered here.
//!
//! As a Query, or as one whole batch of the extended protocol without parameters; outside of transactions that a server
//! knows of, since inside one it is the server that is asked next.

use super::pipeline::Copy;
use super::{ServerSide, Session};
use crate::sql::{Lexer, Token};
use crate::wire::frame::{self, Frame, HEADER};
use crate::wire::frontend::{self, Named};
use crate::wire::reply::{self, ColumnType};
use crate::wire::{BackendTag, FrontendTag, Report, SqlState, TxStatus};

/// What a client asks of the ambassador itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnRequest {
    /// SHOW LAST ROUTE: where its last request went, and why.
    LastRoute,
    /// `SHOW ambassador.<name>`, of a name that exists.
    Show(&'static str),
    /// `SET ambassador.<name> = value`.
    Set(String, String),
}

/// What can be set and shown, and what is only shown.
const SETTINGS: [&str; 4] = ["route", "consistency", "min_lsn", "lsn"];

impl OwnRequest {
    /// What a text asks, if it asks the ambassador, and nothing else.
    pub fn of(text: &[u8], standard_strings: bool) -> Option<Self> {
        let start = text.trim_ascii_start();
        let word = start.get(..4)?;
        if word.eq_ignore_ascii_case(b"show") {
            return Self::show(text, standard_strings);
        }
        let sets = word[..3].eq_ignore_ascii_case(b"set") && word[3].is_ascii_whitespace();
        if sets { Self::set(text, standard_strings) } else { None }
    }

    fn show(text: &[u8], standard_strings: bool) -> Option<Self> {
        let mut words = Words(Lexer::new(text, standard_strings));
        words.next()?;
        let first = words.next()?;
        if first == "last" {
            return (words.next()? == "route" && words.is_over()).then_some(Self::LastRoute);
        }
        if first != "ambassador" || words.next()? != "." {
            return None;
        }
        let name = words.next()?;
        let known = SETTINGS.iter().find(|known| **known == name)?;
        words.is_over().then_some(Self::Show(known))
    }

    fn set(text: &[u8], standard_strings: bool) -> Option<Self> {
        let mut words = Words(Lexer::new(text, standard_strings));
        words.next()?;
        let mut word = words.next()?;
        if word == "session" || word == "local" {
            word = words.next()?;
        }
        if word != "ambassador" || words.next()? != "." {
            return None;
        }
        let name = words.next()?;
        if !matches!(words.next()?.as_str(), "=" | "to") {
            return None;
        }
        let value = words.next()?;
        words.is_over().then_some(Self::Set(name, value))
    }
}

/// Words, names, strings and signs of a text, each as a string; names in lower case unless they are quoted.
struct Words<'a>(Lexer<'a>);

impl Words<'_> {
    fn next(&mut self) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self.0.next_token() {
            Token::Word(word) => Some(text(word).to_ascii_lowercase()),
            Token::Quoted(bytes) | Token::Str(_, bytes) | Token::Number(bytes) | Token::Operator(bytes) => {
                Some(text(bytes))
            }
            Token::Punct(byte) => Some(text(&[byte])),
            Token::Param | Token::End | Token::Broken => None,
        }
    }

    /// Whether nothing but semicolons follows.
    fn is_over(&mut self) -> bool {
        loop {
            match self.0.next_token() {
                Token::End => return true,
                Token::Punct(b';') => {}
                Token::Word(_)
                | Token::Quoted(_)
                | Token::Str(..)
                | Token::Number(_)
                | Token::Operator(_)
                | Token::Punct(_)
                | Token::Param
                | Token::Broken => return false,
            }
        }
    }
}

/// PostgreSQL's words for a value that a setting does not take.
pub fn invalid_value(name: &str, value: &str, hint: &str) -> Report {
    Report::as_postgres(
        SqlState::INVALID_PARAMETER_VALUE,
        format!("invalid value for parameter \"ambassador.{name}\": \"{value}\""),
    )
    .hint(hint)
}

/// Whether an answer of ours may come in between those of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtRest {
    /// It may.
    Yes,
    /// As soon as the server has answered.
    Soon,
    /// It may not.
    No,
}

/// A message of a batch, to be answered.
enum Part {
    Parse,
    Bind,
    DescribeStatement,
    DescribePortal,
    Execute,
}

impl Session {
    /// What the request that `input` begins with asks of the ambassador, if it does; to be asked without a server.
    pub fn own_request(&self, input: &[u8]) -> Option<OwnRequest> {
        let Frame { tag, len } = frame::frontend(input).ok()??;
        let body = input.get(HEADER..len)?;
        let text = match tag {
            FrontendTag::Query => frontend::query(body),
            FrontendTag::Parse => frontend::parse(body).ok()?.query,
            FrontendTag::Bind
            | FrontendTag::Close
            | FrontendTag::CopyData
            | FrontendTag::CopyDone
            | FrontendTag::CopyFail
            | FrontendTag::Describe
            | FrontendTag::Execute
            | FrontendTag::Flush
            | FrontendTag::FunctionCall
            | FrontendTag::Password
            | FrontendTag::Sync
            | FrontendTag::Terminate => return None,
        };
        OwnRequest::of(text, self.standard_strings)
    }

    /// Whether what comes next is not the beginning of a message, or is to be dropped.
    pub fn is_mid_request(&self) -> bool {
        self.body.is_some() || self.skipping || self.at_fence
    }

    /// Whether a request that comes now may be answered without the server that is attached: it owes nothing, and the
    /// transaction, if there is one, is sound.
    pub fn is_at_rest(&self, server: &ServerSide) -> AtRest {
        let pipeline = &server.pipeline;
        if pipeline.batch_open || pipeline.skipping || pipeline.copy != Copy::None {
            return AtRest::No;
        }
        match server.is_busy() {
            true => AtRest::Soon,
            false if self.tx == TxStatus::Failed => AtRest::No,
            false => AtRest::Yes,
        }
    }

    /// Answers such a request with one row. Gives how many bytes it has; none if it is more than that.
    pub fn answer_with_row(
        &mut self,
        input: &[u8],
        row: &[(&str, Option<String>)],
        to_client: &mut Vec<u8>,
    ) -> Option<usize> {
        let (parts, binary, len) = self.parts(input)?;
        let columns: Vec<_> = row.iter().map(|(name, _)| (*name, ColumnType::Text)).collect();
        let values: Vec<_> = row.iter().map(|(_, value)| value.as_deref()).collect();
        if parts.is_empty() {
            // A simple query drops the unnamed statement.
            reply::row_description(to_client, &columns, |_| false);
        }
        for part in &parts {
            match part {
                Part::Parse => reply::message(to_client, BackendTag::ParseComplete, |_| {}),
                Part::Bind => reply::message(to_client, BackendTag::BindComplete, |_| {}),
                Part::DescribeStatement => {
                    reply::message(to_client, BackendTag::ParameterDescription, |body| body.extend([0, 0]));
                    reply::row_description(to_client, &columns, |_| false);
                }
                Part::DescribePortal => reply::row_description(to_client, &columns, |_| binary),
                Part::Execute => {}
            }
        }
        reply::data_row(to_client, &values);
        reply::command_complete(to_client, "SHOW");
        self.unnamed = None;
        self.analysed = None;
        self.end_batch_without_server(to_client);
        Some(len)
    }

    /// The messages of a batch that runs its one text once; none at all for a Query. And whether it wants its result in
    /// binary, and how long it is.
    fn parts(&self, input: &[u8]) -> Option<(Vec<Part>, bool, usize)> {
        let mut at = 0;
        let (mut parts, mut binary) = (Vec::new(), false);
        loop {
            let Frame { tag, len } = frame::frontend(&input[at..]).ok()??;
            let body = input.get(at + HEADER..at + len)?;
            at += len;
            match (tag, parts.last()) {
                (FrontendTag::Query, None) => return Some((parts, false, at)),
                (FrontendTag::Parse, None) if frontend::parse(body).ok()?.name.is_empty() => parts.push(Part::Parse),
                (FrontendTag::Describe, Some(Part::Parse)) if frontend::named(body).ok()? == Named::Statement(b"") => {
                    parts.push(Part::DescribeStatement);
                }
                (FrontendTag::Bind, Some(Part::Parse | Part::DescribeStatement)) => {
                    let bind = frontend::bind(body).ok()?;
                    if !bind.statement.is_empty() || frontend::bind_values(body).next().is_some() {
                        return None;
                    }
                    binary = body.ends_with(&[0, 1]);
                    parts.push(Part::Bind);
                }
                (FrontendTag::Describe, Some(Part::Bind)) => parts.push(Part::DescribePortal),
                (FrontendTag::Execute, Some(Part::Bind | Part::DescribePortal)) => parts.push(Part::Execute),
                (FrontendTag::Sync, Some(Part::Execute)) => return Some((parts, binary, at)),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_asks_the_ambassador_and_nothing_else_is_its_own() {
        let set = |name: &str, value: &str| Some(OwnRequest::Set(name.into(), value.into()));
        for (text, expected) in [
            ("show last route", Some(OwnRequest::LastRoute)),
            (" SHOW  LAST\nROUTE ; ", Some(OwnRequest::LastRoute)),
            ("show ambassador.lsn", Some(OwnRequest::Show("lsn"))),
            ("show Ambassador . Route", Some(OwnRequest::Show("route"))),
            ("show ambassador.unknown", None),
            ("show ambassador.lsn; select 1", None),
            ("show last", None),
            ("set ambassador.route = 'primary'", set("route", "primary")),
            ("SET LOCAL ambassador.min_lsn TO '0/16B3748';", set("min_lsn", "0/16B3748")),
            ("set ambassador.consistency to eventual", set("consistency", "eventual")),
            ("set ambassador.route = 'a', 'b'", None),
            ("set ambassadors.route = 'primary'", None),
            ("select 1", None),
            ("sh", None),
        ] {
            assert_eq!(OwnRequest::of(text.as_bytes(), true), expected, "{text}");
        }
    }
}
