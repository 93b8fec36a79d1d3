import java.io.StringReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;

/**
 * A program that writes a table of PostgreSQL by JDBC, and knows nothing of who reads it. It does what main.go does:
 * Writer PORT TABLE WORKERS ROUNDS.
 */
public final class Writer implements Callable<int[]> {
    private static final int WAYS = 9;
    private static final int[] LEVELS = {
        Connection.TRANSACTION_READ_COMMITTED, Connection.TRANSACTION_REPEATABLE_READ, Connection.TRANSACTION_SERIALIZABLE
    };

    private final String url;
    private final String table;
    private final String own;
    private final int number;
    private final int rounds;
    private final int[] counts = new int[3];

    private Writer(String url, String table, int number, int rounds) {
        this.url = url;
        this.table = table;
        this.own = "java/" + number + "%"; // a key with what is escaped in it
        this.number = number;
        this.rounds = rounds;
    }

    public static void main(String[] arguments) throws Exception {
        // Statements are prepared by the server at once, and a batch is rewritten to one statement of many rows.
        String url = "jdbc:postgresql://127.0.0.1:" + arguments[0]
            + "/postgres?user=postgres&prepareThreshold=1&reWriteBatchedInserts=true";
        ExecutorService pool = Executors.newFixedThreadPool(Integer.parseInt(arguments[2]));
        List<Future<int[]>> running = new ArrayList<>();
        for (int n = 0; n < Integer.parseInt(arguments[2]); n++) {
            running.add(pool.submit(new Writer(url, arguments[1], n, Integer.parseInt(arguments[3]))));
        }
        int[] sum = new int[3];
        for (Future<int[]> one : running) {
            for (int n = 0; n < 3; n++) {
                sum[n] += one.get()[n];
            }
        }
        pool.shutdown();
        System.out.printf("{\"committed\": %d, \"rolled_back\": %d, \"refused\": %d}%n", sum[0], sum[1], sum[2]);
    }

    @Override
    public int[] call() throws Exception {
        try (Connection connection = DriverManager.getConnection(url)) {
            for (int round = 0; round < rounds; round++) {
                int way = (round + number) % WAYS;
                connection.setTransactionIsolation(LEVELS[number % 3]);
                connection.setAutoCommit(way == 0);
                try {
                    boolean keep = change(connection, way, round);
                    if (way != 0 && keep) {
                        connection.commit();
                    } else if (way != 0) {
                        connection.rollback();
                    }
                    counts[keep ? 0 : 1]++;
                } catch (SQLException refused) {
                    if (refused.getSQLState() == null || refused.getSQLState().startsWith("08")) {
                        throw refused;
                    }
                    if (way != 0) {
                        connection.rollback();
                    }
                    counts[2]++;
                }
                connection.setAutoCommit(true);
            }
        }
        return counts;
    }

    /** Does what is to be done in one transaction; false if it is to be rolled back. */
    private boolean change(Connection connection, int way, int round) throws Exception {
        switch (way) {
            case 0: // a statement that is a transaction of its own
                put(connection, "shared", round % 5);
                return true;
            case 1: // several rows with one prepared statement, one of them twice
                put(connection, own, 1, 2, 3, 2);
                return true;
            case 2: // all given up
                put(connection, own, 4);
                run(connection, "DELETE FROM " + table + " WHERE region = '" + own + "'");
                return false;
            case 3: // a part given up
                Savepoint begin = connection.setSavepoint();
                run(connection, "DELETE FROM " + table + " WHERE id < 1000");
                connection.rollback(begin);
                put(connection, own, 1);
                return true;
            case 4: // COPY
                StringBuilder rows = new StringBuilder();
                for (int n = 0; n < 5; n++) {
                    rows.append(own).append('\t').append(1000 * (round + 1) + n).append('\t').append(n).append("\t\\N\n");
                }
                connection.unwrap(PGConnection.class).getCopyAPI()
                    .copyIn("COPY " + table + " (region, id, v, note) FROM STDIN", new StringReader(rows.toString()));
                return true;
            case 5: // a batch
                try (PreparedStatement insert = connection.prepareStatement(
                    "INSERT INTO " + table + " AS t (region, id, v, note) VALUES (?, ?, ?, 'many')"
                        + " ON CONFLICT (region, id) DO UPDATE SET v = 0")) {
                    for (int n = 1; n <= 20; n++) {
                        insert.setString(1, own);
                        insert.setInt(2, n);
                        insert.setBigDecimal(3, new java.math.BigDecimal(n + ".50"));
                        insert.addBatch();
                    }
                    insert.executeBatch();
                }
                return true;
            case 6: // other keys
                run(connection, "UPDATE " + table + " SET id = -id WHERE region = '" + own
                    + "' AND id BETWEEN 1000 AND 99999 AND id % 2 = 0");
                return true;
            case 7:
                run(connection, "DELETE FROM " + table + " WHERE region = '" + own + "' AND id % 3 = 0");
                return true;
            default: // an error in the middle
                put(connection, own, 9);
                run(connection, "INSERT INTO " + table + " VALUES ('" + own + "', 9)");
                return true;
        }
    }

    private void put(Connection connection, String region, int... ids) throws SQLException {
        try (PreparedStatement upsert = connection.prepareStatement(
            "INSERT INTO " + table + " AS t (region, id, v, note) VALUES (?, ?, ?, ?)"
                + " ON CONFLICT (region, id) DO UPDATE SET v = t.v + excluded.v, note = excluded.note")) {
            for (int id : ids) {
                upsert.setString(1, region);
                upsert.setInt(2, id);
                upsert.setBigDecimal(3, new java.math.BigDecimal("1.50"));
                upsert.setString(4, "é€😀 \\ \"");
                upsert.executeUpdate();
            }
        }
    }

    private static void run(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.executeUpdate(query);
        }
    }
}
