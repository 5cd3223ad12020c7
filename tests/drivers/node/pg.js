// What programs ordinarily do with node-postgres. usage: pg.js HOST PORT DATABASE [CA]
'use strict'
const fs = require('node:fs')
const assert = require('node:assert')
const { pipeline } = require('node:stream/promises')
const { Readable, Writable } = require('node:stream')
const pg = require('pg')
const Cursor = require('pg-cursor')
const QueryStream = require('pg-query-stream')
const copy = require('pg-copy-streams')

const [host, port, database, ca] = process.argv.slice(2)
const config = { host, port: Number(port), database, user: 'app', password: 'secret of app' }
if (ca) config.ssl = { ca: fs.readFileSync(ca, 'utf8') }

function same(got, wanted, what) {
  assert.deepStrictEqual(got, wanted, `node-postgres: ${what}`)
}

async function fails(code, what, action) {
  try {
    await action
  } catch (error) {
    same(error.code, code, `${what}: ${error.message}`)
    return error
  }
  throw new Error(`node-postgres: ${what}: no ${code}`)
}

async function values(client) {
  const cases = [
    ['int2', -5], ['int4', 2147483647], ['int8', '9223372036854775807'], ['float8', 1.5], ['numeric', '1.50'], ['bool', true],
    ['text', 'naïve \u{1f418} "\'\\'], ['bytea', Buffer.from([...Array(256).keys()])], ['timestamptz', new Date(1e12)],
    ['int4[]', [1, null, 3]], ['text[]', ['a', null, 'b"', 'c,d']], ['jsonb', { a: [1, { b: null }] }], ['text', null],
  ]
  for (let round = 0; round < 3; round++) {
    for (const [type, value] of cases) {
      const { rows } = await client.query(`select $1::${type} as v`, [value])
      same(rows, [{ v: value }], type)
    }
  }
  const { rows, fields } = await client.query({ text: 'select 1 as a, 2 as a', rowMode: 'array' })
  same([rows, fields.map((field) => field.name)], [[[1, 2]], ['a', 'a']], 'array mode')
  const results = await client.query('select 1 as n; select 2 as n; create temp table if not exists x (); drop table x')
  same(results.map((result) => result.command), ['SELECT', 'SELECT', 'CREATE', 'DROP'], 'several statements')
}

async function prepared(client) {
  for (let n = 0; n < 50; n++) {
    const { rows } = await client.query({ name: 'twice', text: 'select $1::int4 * 2 as n', values: [n] })
    same(rows, [{ n: 2 * n }], 'named statement')
  }
  for (let n = 0; n < 100; n++) {
    const { rows } = await client.query({ name: `s${n}`, text: `select ${n} + $1::int4 as n`, values: [n] })
    same(rows, [{ n: 2 * n }], 'many named statements')
  }
  await fails('22P02', 'bad value', client.query({ name: 'twice', text: 'select $1::int4 * 2 as n', values: ['x'] }))
  await fails('42P01', 'bad statement', client.query({ name: 'bad', text: 'select * from nothing' }))
  same((await client.query({ name: 'twice', text: 'select $1::int4 * 2 as n', values: [4] })).rows, [{ n: 8 }], 'again')
}

async function transactions(client) {
  await client.query('create table ledger (n int primary key)')
  await client.query('begin')
  await client.query('insert into ledger values ($1)', [1])
  await client.query('savepoint s')
  const error = await fails('23505', 'duplicate', client.query('insert into ledger values ($1)', [1]))
  same([error.constraint, error.table], ['ledger_pkey', 'ledger'], 'fields of the error')
  await fails('25P02', 'failed transaction', client.query('select 1'))
  await client.query('rollback to s')
  await client.query('commit')
  await client.query('begin')
  await client.query('delete from ledger')
  await client.query('rollback')
  same((await client.query('select n from ledger')).rows, [{ n: 1 }], 'rollback')
  await fails('42601', 'syntax', client.query('selec 1'))
  await fails('42601', 'syntax with parameters', client.query('selec $1', [1]))
}

async function queued(client) {
  const answers = await Promise.all([...Array(200).keys()].map((n) => client.query('select $1::int4 as n', [n])))
  same(answers.map(({ rows }) => rows[0].n), [...Array(200).keys()], 'queued queries')
}

async function copies(client) {
  await client.query('create table heap (n int, t text)')
  const text = [...Array(20000).keys()].map((n) => `${n}\tline ${n}\n`).join('')
  await pipeline(Readable.from([text]), client.query(copy.from('copy heap from stdin')))
  const parts = []
  const sink = new Writable({ write(part, _, done) { parts.push(part); done() } })
  await pipeline(client.query(copy.to('copy (select * from heap order by n) to stdout')), sink)
  same(Buffer.concat(parts).toString() === text, true, 'copy out')
  await fails('22P02', 'rubbish', pipeline(Readable.from(['x\ty\n']), client.query(copy.from('copy heap from stdin'))))
  same((await client.query('select count(*)::int4 as n from heap')).rows, [{ n: 20000 }], 'after copies')
}

async function cursors(client) {
  const cursor = client.query(new Cursor('select generate_series(1, $1::int4) as n', [1000]))
  let total = 0
  for (let rows; (rows = await cursor.read(77)).length > 0;) total += rows.reduce((sum, row) => sum + row.n, 0)
  same(total, 500500, 'cursor')
  const early = client.query(new Cursor('select generate_series(1, 1000000) as n'))
  same((await early.read(2)).map((row) => row.n), [1, 2], 'cursor that is left')
  await early.close()
  total = 0
  for await (const row of client.query(new QueryStream('select generate_series(1, 5000) as n', [], { batchSize: 100 }))) total += row.n
  same(total, 12502500, 'query stream')
}

async function large(client) {
  for (const size of [1, 100, 8192, 65536, 1 << 20, 16 << 20]) {
    const data = Buffer.alloc(size, 'abcdefg')
    const { rows } = await client.query('select $1::bytea as b, length($2::text) as n', [data, 'x'.repeat(size)])
    same([data.equals(rows[0].b), rows[0].n], [true, size], `${size} bytes`)
  }
}

async function cancels(client) {
  const pid = (await client.query('select pg_backend_pid() as pid')).rows[0].pid
  same(typeof pid, 'number', 'a process id')
  // The driver's own way: a connection that sends a cancel request with the key of this one.
  const waiting = fails('57014', 'cancel', client.query('select pg_sleep(60)'))
  await new Promise((done) => setTimeout(done, 100))
  const active = { processID: client.processID, secretKey: client.secretKey }
  const canceller = new pg.Client(config)
  await new Promise((done, fail) => {
    const { connection } = canceller
    connection.once('error', fail)
    connection.once('end', done)
    const ready = ca ? 'sslconnect' : 'connect'
    connection.once(ready, () => connection.cancel(active.processID, active.secretKey))
    connection.connect(config.port, config.host)
    if (ca) connection.once('connect', () => connection.requestSsl())
  }).catch((error) => { if (error.code !== 'ECONNRESET') throw error })
  await waiting
  same((await client.query('select 1 as n')).rows, [{ n: 1 }], 'after a cancel')
}

async function crowd() {
  const pool = new pg.Pool({ ...config, max: 20 })
  await pool.query('create table crowd as select 0 as n')
  const work = async (who) => {
    for (let n = 0; n < 30; n++) {
      const client = await pool.connect()
      try {
        await client.query('begin')
        const { rows } = await client.query('select $1::text as t', [`${who}-${n}`])
        same(rows, [{ t: `${who}-${n}` }], 'own answer')
        await client.query('update crowd set n = n + 1')
        await client.query('commit')
      } finally {
        client.release()
      }
    }
  }
  await Promise.all([...Array(20).keys()].map(work))
  same((await pool.query('select n from crowd')).rows, [{ n: 600 }], 'their work')
  await pool.end()
}

async function main() {
  const client = new pg.Client({ ...config, application_name: 'node-postgres', statement_timeout: 55000 })
  const notices = []
  client.on('notice', (notice) => notices.push(notice.message))
  await client.connect()
  same((await client.query('show statement_timeout')).rows, [{ statement_timeout: '55s' }], 'statement_timeout')
  await client.query("do $$ begin raise notice 'heed this'; end $$")
  same(notices, ['heed this'], 'notice')
  for (const part of [values, prepared, transactions, queued, copies, cursors, large, cancels]) await part(client)
  await client.end()
  await crowd()
  await fails('3D000', 'no such database', new pg.Client({ ...config, database: 'nowhere' }).connect())
  console.log('node-postgres', require('pg/package.json').version)
}

main().catch((error) => { console.error(error); process.exit(1) })
