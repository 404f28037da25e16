import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.Executors;

/** An HTTP server with named counters in a HashMap: GET /NAME reads, POST /NAME adds one. */
final class Counter {
    private static final Map<String, Long> COUNTERS = new HashMap<>();

    public static void main(String[] arguments) throws IOException {
        var address = new InetSocketAddress(arguments[0], Integer.parseInt(arguments[1]));
        var server = HttpServer.create(address, 0);
        server.createContext("/", Counter::answer);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
    }

    private static void answer(HttpExchange exchange) throws IOException {
        var name = exchange.getRequestURI().getPath();
        var body = (count(name, exchange.getRequestMethod()) + "\n").getBytes(StandardCharsets.US_ASCII);
        exchange.sendResponseHeaders(200, body.length);
        try (var out = exchange.getResponseBody()) {
            out.write(body);
        }
    }

    private static long count(String name, String method) {
        synchronized (COUNTERS) {
            return method.equals("POST") ? COUNTERS.merge(name, 1L, Long::sum) : COUNTERS.getOrDefault(name, 0L);
        }
    }
}
