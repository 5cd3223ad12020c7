// What programs ordinarily do with Postgres.js, which pipelines what it can. usage: postgres.js HOST PORT DATABASE [CA]
'use strict'
const fs = require('node:fs')
const assert = require('node:assert')
const postgres = require('postgres')

const [host, port, database, ca] = process.argv.slice(2)
const config = { host, port: Number(port), database, user: 'app', password: 'secret of app', max: 20, onnotice() {} }
if (ca) config.ssl = { ca: fs.readFileSync(ca, 'utf8') }

function same(got, wanted, what) {
  assert.deepStrictEqual(got, wanted, `Postgres.js: ${what}`)
}

async function fails(code, what, action) {
  try {
    await action
  } catch (error) {
    return same(error.code, code, `${what}: ${error.message}`)
  }
  throw new Error(`Postgres.js: ${what}: no ${code}`)
}

async function main() {
  const sql = postgres(config)
  await sql`create table ledger (n int primary key, t text, doc jsonb, b bytea, at timestamptz)`
  const rows = [...Array(1000).keys()].map((n) => (
    { n, t: n % 3 ? `row ${n}` : null, doc: { n }, b: Buffer.from([n % 256]), at: new Date(1e12 + n) }))
  await sql`insert into ledger ${sql(rows)}`
  same([...await sql`select * from ledger order by n`], rows, 'rows')
  const answers = await Promise.all([...Array(500).keys()].map((n) => sql`select ${n}::int4 as n`))
  same(answers.map(([row]) => row.n), [...Array(500).keys()], 'queries in flight')
  await fails('23505', 'duplicate', sql.begin(async (sql) => {
    await sql`delete from ledger where n > 500`
    await sql.savepoint((sql) => sql`select 1 / ${0}::int4`).catch((error) => same(error.code, '22012', 'savepoint'))
    const [{ n }] = await sql`select count(*)::int4 as n from ledger`
    same(n, 501, 'inside')
    await sql`insert into ledger (n) values (1)`
  }))
  same((await sql`select 1 from ledger`).count, 1000, 'rolled back')
  let total = 0
  await sql`select n from ledger`.cursor(33, (rows) => { for (const { n } of rows) total += n })
  same(total, 499500, 'cursor')
  const text = 'x'.repeat(4 << 20)
  const [{ t }] = await sql`select ${text} as t`
  same(t === text, true, 'a large value')
  const query = sql`select pg_sleep(60)`
  const waiting = fails('57014', 'cancel', query)
  await new Promise((done) => setTimeout(done, 200))
  query.cancel()
  await waiting
  await sql.unsafe('alter table ledger add extra int default 7')
  const [{ extra }] = await sql`select * from ledger where n = ${5}`
  same(extra, 7, 'a table that changed')
  await sql.end()
  console.log('Postgres.js')
}

main().catch((error) => { console.error(error); process.exit(1) })
