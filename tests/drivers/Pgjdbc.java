// What programs ordinarily do with pgjdbc. usage: java Pgjdbc.java HOST PORT DATABASE [CA]

import java.io.ByteArrayOutputStream;
import java.io.StringReader;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.sql.*;
import java.time.*;
import java.util.*;
import java.util.concurrent.*;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.util.PSQLException;

public class Pgjdbc {
    static String url;
    static Properties properties = new Properties();

    interface Action { void run() throws Exception; }

    static void same(Object got, Object wanted, String what) {
        if (!Objects.deepEquals(got, wanted)) throw new AssertionError(what + ": got " + got + ", wanted " + wanted);
    }

    static PSQLException fails(String state, String what, Action action) throws Exception {
        try {
            action.run();
        } catch (SQLException error) {
            SQLException last = error;
            while (last.getNextException() != null) last = last.getNextException();
            same(last.getSQLState(), state, what + ": " + last.getMessage());
            return (PSQLException) last;
        }
        throw new AssertionError(what + ": no " + state);
    }

    static Connection connect(String more) throws SQLException {
        return DriverManager.getConnection(url + more, properties);
    }

    static Object one(Connection conn, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = conn.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) statement.setObject(i + 1, values[i]);
            try (ResultSet rows = statement.executeQuery()) {
                rows.next();
                return rows.getObject(1);
            }
        }
    }

    static void run(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement()) {
            statement.execute(sql);
        }
    }

    static void values(Connection conn) throws Exception {
        byte[] raw = new byte[256];
        for (int i = 0; i < 256; i++) raw[i] = (byte) i;
        String sql = "select ?::int4, ?::int8, ?::float8, ?::numeric, ?::bool, ?::text, ?::bytea, ?::date, ?::timestamp, ?::timestamptz, "
            + "?::uuid, ?::jsonb, ?::int4[], ?::text";
        Object[] row = {
            -5, Long.MIN_VALUE, 1e300, new BigDecimal("1.50"), true, "na\u00efve '\"\\ \ud83d\udc18", raw, LocalDate.of(2000, 2, 29),
            LocalDateTime.of(2024, 1, 2, 3, 4, 5, 6000), OffsetDateTime.of(2024, 1, 2, 3, 4, 5, 0, ZoneOffset.UTC), new UUID(1, 2),
            "{\"a\": 1}", conn.createArrayOf("int4", new Object[] {1, null, 3}), null,
        };
        try (PreparedStatement statement = conn.prepareStatement(sql)) {
            for (int round = 0; round < 12; round++) { // beyond prepareThreshold, where it turns to binary
                for (int i = 0; i < row.length; i++) statement.setObject(i + 1, row[i]);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    same(rows.getInt(1), row[0], "int4");
                    same(rows.getLong(2), row[1], "int8");
                    same(rows.getDouble(3), row[2], "float8");
                    same(rows.getBigDecimal(4), row[3], "numeric");
                    same(rows.getBoolean(5), row[4], "bool");
                    same(rows.getString(6), row[5], "text");
                    same(rows.getBytes(7), row[6], "bytea");
                    same(rows.getObject(8, LocalDate.class), row[7], "date");
                    same(rows.getObject(9, LocalDateTime.class), row[8], "timestamp");
                    same(rows.getObject(10, OffsetDateTime.class), row[9], "timestamptz");
                    same(rows.getObject(11), row[10], "uuid");
                    same(rows.getString(12), row[11], "jsonb");
                    same(rows.getArray(13).getArray(), new Integer[] {1, null, 3}, "int4[]");
                    same(rows.getObject(14), null, "null");
                }
            }
        }
    }

    static void prepared(Connection conn) throws Exception {
        try (PreparedStatement statement = conn.prepareStatement("select ? * 2")) {
            for (int n = 0; n < 100; n++) {
                statement.setInt(1, n);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    same(rows.getInt(1), 2 * n, "prepared");
                }
            }
            statement.setString(1, "x"); // other types: prepared anew
            fails("42883", "bad value", statement::executeQuery);
            statement.setInt(1, 4);
            try (ResultSet rows = statement.executeQuery()) {
                rows.next();
                same(rows.getInt(1), 8, "prepared, after an error");
            }
        }
        for (int n = 0; n < 300; n++) { // the driver keeps 256
            for (int round = 0; round < 6; round++) same(one(conn, "select " + n + " + ?", n), 2 * n, "many statements");
        }
        // A table that changes under a prepared statement: outside a transaction the driver prepares anew.
        run(conn, "create table moving (n int4)");
        for (int round = 0; round < 7; round++) {
            try (PreparedStatement statement = conn.prepareStatement("select * from moving"); ResultSet rows = statement.executeQuery()) {
                same(rows.next(), false, "moving");
            }
        }
        run(conn, "alter table moving add m text default 'm'; insert into moving values (1)");
        for (int round = 0; round < 7; round++) {
            try (PreparedStatement statement = conn.prepareStatement("select * from moving"); ResultSet rows = statement.executeQuery()) {
                rows.next();
                same(rows.getString(2), "m", "moved");
            }
        }
    }

    static void transactions(Connection conn) throws Exception {
        run(conn, "create table ledger (n int primary key)");
        conn.setAutoCommit(false);
        run(conn, "insert into ledger values (1)");
        Savepoint savepoint = conn.setSavepoint();
        PSQLException error = fails("23505", "duplicate", () -> run(conn, "insert into ledger values (1)"));
        same(error.getServerErrorMessage().getConstraint(), "ledger_pkey", "constraint");
        fails("25P02", "failed transaction", () -> one(conn, "select 1"));
        conn.rollback(savepoint);
        run(conn, "insert into ledger values (2)");
        conn.commit();
        run(conn, "delete from ledger");
        conn.rollback();
        same(one(conn, "select count(*) from ledger"), 2L, "rollback");
        conn.commit();
        run(conn, "set transaction isolation level serializable");
        same(one(conn, "show transaction_isolation"), "serializable", "isolation");
        conn.rollback();
        conn.setReadOnly(true);
        fails("25006", "read only", () -> run(conn, "delete from ledger"));
        conn.rollback();
        conn.setReadOnly(false);
        conn.setAutoCommit(true);
        fails("42601", "syntax", () -> run(conn, "selec 1"));
    }

    static void batches(Connection conn, boolean atomic) throws Exception {
        for (int round = 0; round < 3; round++) {
            try (PreparedStatement statement = conn.prepareStatement("insert into ledger values (?)")) {
                for (int n = 0; n < 1000; n++) {
                    statement.setInt(1, 1000 + n);
                    statement.addBatch();
                }
                same(statement.executeBatch().length, 1000, "batch");
                statement.setInt(1, 5000);
                statement.addBatch();
                statement.setInt(1, 1000);
                statement.addBatch();
                statement.setInt(1, 5001);
                statement.addBatch();
                fails("23505", "bad batch", statement::executeBatch);
            }
            // Sent whole, it leaves nothing; cut into several statements, what came before the bad one.
            if (atomic) same(one(conn, "select count(*) from ledger where n >= 5000"), 0L, "a bad batch leaves nothing");
            run(conn, "delete from ledger where n >= 5000");
            try (PreparedStatement statement = conn.prepareStatement("delete from ledger where n >= ?")) {
                statement.setInt(1, 1000);
                same(statement.executeUpdate(), 1000, "deleted");
            }
        }
        try (PreparedStatement statement = conn.prepareStatement("insert into ledger values (?)", Statement.RETURN_GENERATED_KEYS)) {
            statement.setInt(1, 7000);
            statement.executeUpdate();
            try (ResultSet keys = statement.getGeneratedKeys()) {
                keys.next();
                same(keys.getInt(1), 7000, "generated keys");
            }
        }
        run(conn, "delete from ledger where n = 7000");
    }

    static void copies(Connection conn) throws Exception {
        run(conn, "drop table if exists heap; create table heap (n int, t text)");
        StringBuilder text = new StringBuilder();
        for (int n = 0; n < 20000; n++) text.append(n).append("\tline ").append(n).append('\n');
        CopyManager copies = conn.unwrap(PGConnection.class).getCopyAPI();
        same(copies.copyIn("copy heap from stdin", new StringReader(text.toString())), 20000L, "copy in");
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        copies.copyOut("copy (select * from heap order by n) to stdout", out);
        same(out.toString(StandardCharsets.UTF_8).contentEquals(text), true, "copy out");
        fails("22P02", "rubbish", () -> copies.copyIn("copy heap from stdin", new StringReader("x\ty\n")));
        same(one(conn, "select count(*) from heap"), 20000L, "after copies");
    }

    static void cursors(Connection conn) throws Exception {
        conn.setAutoCommit(false);
        for (int round = 0; round < 7; round++) {
            try (PreparedStatement statement = conn.prepareStatement("select generate_series(1, 1000)")) {
                statement.setFetchSize(37);
                long total = 0;
                try (ResultSet rows = statement.executeQuery()) {
                    while (rows.next()) total += rows.getInt(1);
                }
                same(total, 500500L, "fetch size");
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    same(rows.getInt(1), 1, "a cursor that is left");
                }
            }
        }
        conn.commit();
        conn.setAutoCommit(true);
    }

    static void large(Connection conn) throws Exception {
        for (int size : new int[] {1, 100, 8192, 65536, 1 << 20, 16 << 20}) {
            byte[] data = new byte[size];
            new Random(size).nextBytes(data);
            same(Arrays.equals((byte[]) one(conn, "select ?::bytea", data), data), true, size + " bytes");
        }
    }

    static void cancels(Connection conn) throws Exception {
        ScheduledExecutorService clock = Executors.newSingleThreadScheduledExecutor();
        try (Statement statement = conn.createStatement()) {
            clock.schedule(() -> { statement.cancel(); return null; }, 100, TimeUnit.MILLISECONDS);
            fails("57014", "cancel", () -> statement.execute("select pg_sleep(60)"));
            statement.setQueryTimeout(1);
            fails("57014", "query timeout", () -> statement.execute("select pg_sleep(60)"));
        }
        clock.shutdown();
        same(one(conn, "select 1"), 1, "after cancels");
    }

    static void metadata(Connection conn) throws Exception {
        Set<String> tables = new TreeSet<>();
        try (ResultSet rows = conn.getMetaData().getTables(null, "public", "%", new String[] {"TABLE"})) {
            while (rows.next()) tables.add(rows.getString("TABLE_NAME"));
        }
        same(tables.containsAll(List.of("ledger", "moving")), true, "tables " + tables);
        try (ResultSet rows = conn.getMetaData().getPrimaryKeys(null, "public", "ledger")) {
            rows.next();
            same(rows.getString("COLUMN_NAME"), "n", "primary key");
        }
        same(conn.isValid(10), true, "isValid");
    }

    static void crowd() throws Exception {
        try (Connection conn = connect("")) {
            run(conn, "create table crowd as select 0 as n");
            ExecutorService threads = Executors.newFixedThreadPool(20);
            List<Future<?>> results = new ArrayList<>();
            for (int i = 0; i < 20; i++) {
                int who = i;
                results.add(threads.submit(() -> {
                    try (Connection mine = connect("")) {
                        mine.setAutoCommit(false);
                        for (int n = 0; n < 30; n++) {
                            same(one(mine, "select ?::text", who + "-" + n), who + "-" + n, "own answer");
                            run(mine, "update crowd set n = n + 1");
                            mine.commit();
                        }
                    }
                    return null;
                }));
            }
            threads.shutdown();
            for (Future<?> result : results) result.get();
            same(one(conn, "select n from crowd"), 600, "their work");
        }
    }

    public static void main(String[] args) throws Exception {
        url = "jdbc:postgresql://" + args[0] + ":" + args[1] + "/" + args[2];
        properties.setProperty("user", "app");
        properties.setProperty("password", "secret of app");
        if (args.length > 3) {
            properties.setProperty("sslmode", "verify-full");
            properties.setProperty("sslrootcert", args[3]);
        } else {
            properties.setProperty("sslmode", "disable");
        }
        try (Connection conn = connect("")) {
            for (Action part : new Action[] {
                () -> values(conn), () -> prepared(conn), () -> transactions(conn), () -> batches(conn, true), () -> copies(conn),
                () -> cursors(conn), () -> large(conn), () -> cancels(conn), () -> metadata(conn),
            }) part.run();
        }
        for (String mode : List.of("extended", "extendedForPrepared", "extendedCacheEverything", "simple")) {
            try (Connection conn = connect("?reWriteBatchedInserts=true&preferQueryMode=" + mode)) {
                batches(conn, false);
                copies(conn);
                cursors(conn);
            }
        }
        crowd();
        url = url.replaceAll("/[^/]*$", "/nowhere");
        fails("3D000", "no such database", () -> connect(""));
        System.out.println("pgjdbc " + org.postgresql.util.DriverInfo.DRIVER_VERSION);
    }
}
