//! Makes streams of messages: a client's that make sense, and a server's that may not.

use super::Random;
use pg_ambassador::wire::{BackendTag, FrontendTag, reply};

const NAMES: &[&[u8]] = &[b"", b"", b"a", b"b", b"c"];
const PORTALS: &[&[u8]] = &[b"", b"", b"", b"p"];
/// Each Bind has one value: what is planned needs one.
const TEXTS: &[&str] = &[
    "select rows 1 $1",
    "select rows 2 $1",
    "select rows 3 $1",
    "update 1 $1",
    "update 2 $1",
    "",
    "fail",
    "break",
    "begin",
    "commit",
    "rollback",
    "select notice $1",
    "copy out",
    "copy in",
];

fn push(out: &mut Vec<u8>, tag: FrontendTag, parts: &[&[u8]]) {
    reply::request(out, tag, |body| parts.iter().for_each(|part| body.extend(*part)));
}

/// A client's messages, about so many, that end outside a transaction with nothing left open.
pub fn client_stream(random: &mut Random, messages: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..=random.below(messages) {
        match random.below(10) {
            0 => simple(random, &mut out),
            1 => push(&mut out, FrontendTag::Sync, &[]),
            2 => push(&mut out, FrontendTag::FunctionCall, &[b"call"]),
            3 => push(&mut out, FrontendTag::CopyDone, &[]),
            _ => batch(random, &mut out),
        }
    }
    push(&mut out, FrontendTag::Sync, &[]);
    reply::query(&mut out, "rollback");
    out
}

fn simple(random: &mut Random, out: &mut Vec<u8>) {
    let text = *random.choose(TEXTS);
    reply::query(out, text);
    if text == "copy in" {
        copy_data(random, out);
    }
}

fn copy_data(random: &mut Random, out: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let data = vec![b'd'; random.below(40)];
        push(out, FrontendTag::CopyData, &[&data]);
        if random.one_in(4) {
            push(out, FrontendTag::Flush, &[]);
        }
    }
    if random.one_in(4) { push(out, FrontendTag::CopyFail, &[b"no\0"]) } else { push(out, FrontendTag::CopyDone, &[]) }
}

fn batch(random: &mut Random, out: &mut Vec<u8>) {
    for _ in 0..=random.below(6) {
        let (name, portal) = (*random.choose(NAMES), *random.choose(PORTALS));
        match random.below(9) {
            0 | 1 => {
                // A COPY IN needs its data right behind its Execute, and nothing may fail in between.
                let text = random.choose(&TEXTS[..TEXTS.len() - 1]);
                reply::parse(out, name, text.as_bytes(), &[0, 0]);
            }
            2 | 3 => {
                let value = [b'a' + u8::try_from(random.below(26)).unwrap_or(0)];
                push(out, FrontendTag::Bind, &[portal, b"\0", name, b"\0\0\0\0\x01\0\0\0\x01", &value, b"\0\0"]);
            }
            4 => push(out, FrontendTag::Describe, &[b"S", name, b"\0"]),
            5 => push(out, FrontendTag::Describe, &[b"P", portal, b"\0"]),
            6 | 7 => {
                let limit = if random.one_in(4) { 1u32 } else { 0 };
                push(out, FrontendTag::Execute, &[portal, b"\0", &limit.to_be_bytes()]);
            }
            _ if random.one_in(3) => push(out, FrontendTag::Flush, &[]),
            _ => push(out, FrontendTag::Close, &[b"S", name, b"\0"]),
        }
    }
    if random.one_in(8) {
        reply::parse(out, b"", b"copy in", &[0, 0]);
        push(out, FrontendTag::Bind, &[b"\0\0\0\0\0\0\0\0"]);
        push(out, FrontendTag::Execute, &[b"\0\0\0\0\0"]);
        if random.one_in(2) {
            push(out, FrontendTag::Sync, &[]);
        }
        copy_data(random, out);
        // The statement must not be run again where no data follows: a simple query drops it.
        push(out, FrontendTag::Sync, &[]);
        reply::query(out, "");
    }
    if !random.one_in(12) {
        push(out, FrontendTag::Sync, &[]);
    }
}

/// Any messages a server may send, in any order.
pub fn server_stream(random: &mut Random, messages: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..=random.below(messages) {
        let body: &[u8] = match random.below(8) {
            0 => b"I",
            1 => b"T",
            2 => b"E",
            3 => b"SERROR\0VERROR\0C42601\0Mprepared statement \"pg_ambassador_1\" is wrong\0\0",
            4 => b"SFATAL\0VFATAL\0C57P01\0Mgone\0\0",
            5 => b"standard_conforming_strings\0off\0",
            6 => b"\0\x01\0\0\0\x01x",
            _ => b"",
        };
        let tag = *random.choose(BackendTag::ALL);
        reply::message(&mut out, tag, |to| to.extend(body));
    }
    out
}
