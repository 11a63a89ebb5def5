package ringmq.interop;

import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.common.MQVersion;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;

/**
 * Runs scenarios against a running broker: {@code NAMESRV_ADDR SCENARIO[,SCENARIO…]|all [RUN_ID]}, or {@code --list}.
 * Prints a line per check and exits with 0 only when none failed. Two runs never share a topic or a group unless they
 * are given the same run id, which only the pair offsets_save and offsets_check needs.
 */
public final class Main {
    interface Scenario {
        void run(World world) throws Exception;
    }

    private static final int WATCHDOG_SECONDS = 120;
    private static final Map<String, Scenario> SCENARIOS = new LinkedHashMap<>();
    /** These run only when named: they go with a restart of the broker or another program, or are what a scenario kills. */
    private static final List<String> PHASES =
        List.of("offsets_save", "offsets_check", "orderly_restart", "pop_restart", "orderly_victim", "native_compression");

    static {
        SCENARIOS.put("codec", Producing::codec);
        SCENARIOS.put("producer_sync", Producing::sync);
        SCENARIOS.put("producer_async", Producing::async);
        SCENARIOS.put("producer_oneway", Producing::oneway);
        SCENARIOS.put("producer_batch", Producing::batch);
        SCENARIOS.put("producer_selector", Producing::selector);
        SCENARIOS.put("auto_create", Producing::autoCreate);
        SCENARIOS.put("both_shards", Producing::bothShards);
        SCENARIOS.put("bodies", Content::bodies);
        SCENARIOS.put("keys_properties", Content::keysProperties);
        SCENARIOS.put("long_names", Content::longNames);
        SCENARIOS.put("push_concurrent", Pushing::concurrent);
        SCENARIOS.put("push_tags", Pushing::tags);
        SCENARIOS.put("push_broadcast", Pushing::broadcast);
        SCENARIOS.put("push_orderly", Pushing::orderly);
        SCENARIOS.put("rebalance", Pushing::rebalance);
        SCENARIOS.put("retry", Retrying::retry);
        SCENARIOS.put("dlq", Retrying::dlq);
        SCENARIOS.put("delay", Retrying::delay);
        SCENARIOS.put("pop", Popping::pop);
        SCENARIOS.put("pop_orderly", Popping::orderly);
        SCENARIOS.put("pop_restart", Popping::restart);
        SCENARIOS.put("consume_from", Consuming::consumeFrom);
        SCENARIOS.put("consume_from_aged", Consuming::consumeFromAged);
        SCENARIOS.put("long_poll", Consuming::longPoll);
        SCENARIOS.put("flow_control", Consuming::flowControl);
        SCENARIOS.put("orderly_suspend", Consuming::orderlySuspend);
        SCENARIOS.put("orderly_crash", Consuming::orderlyCrash);
        SCENARIOS.put("orderly_restart", Consuming::orderlyRestart);
        SCENARIOS.put("lite_pull", Pulling::lite);
        SCENARIOS.put("pull", Pulling::pull);
        SCENARIOS.put("query_offsets", Pulling::queryOffsets);
        SCENARIOS.put("view_by_id", Pulling::viewById);
        SCENARIOS.put("find", Finding::find);
        SCENARIOS.put("sql", Filtering::sql);
        SCENARIOS.put("group_live", Groups::live);
        SCENARIOS.put("group_offsets", Groups::offsets);
        SCENARIOS.put("group_settings", Groups::settings);
        SCENARIOS.put("native_compression", Native::compression);
        SCENARIOS.put("offsets_save", Offsets::save);
        SCENARIOS.put("offsets_check", Offsets::check);
        SCENARIOS.put("orderly_victim", Consuming::orderlyVictim);
    }

    private Main() {
    }

    public static void main(String[] args) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        if (args.length == 1 && args[0].equals("--list")) {
            SCENARIOS.keySet().forEach(out::println);
            return;
        }
        if (args.length < 2 || args.length > 3) {
            System.err.println("usage: NAMESRV_ADDR SCENARIO[,SCENARIO…]|all [RUN_ID]   or   --list");
            System.exit(2);
        }
        List<String> names = new ArrayList<>(args[1].equals("all") ? SCENARIOS.keySet() : Arrays.asList(args[1].split(",")));
        if (args[1].equals("all")) {
            names.removeAll(PHASES);
            if (System.getProperty("interop.tool") == null) {
                names.remove("consume_from_aged");
            }
        }
        for (String name : names) {
            if (!SCENARIOS.containsKey(name)) {
                System.err.println("no scenario " + name + "; --list names them");
                System.exit(2);
            }
        }
        String runId = args.length == 3 ? args[2] : Long.toString(System.currentTimeMillis(), 36);
        keepClientFilesHere();

        // Some of the clients' own lines go to standard output, also after the count.
        System.setOut(System.err);
        Report report = new Report(out);
        report.note("client " + MQVersion.getVersionDesc(MQVersion.CURRENT_VERSION) + ", codec "
            + RemotingCommand.getSerializeTypeConfigInThisServer() + ", run " + runId);
        for (String name : names) {
            runOne(new World(args[0], runId, name, report), SCENARIOS.get(name));
        }
        System.exit(report.summary() ? 0 : 1);
    }

    private static void runOne(World world, Scenario scenario) {
        CountDownLatch finished = new CountDownLatch(1);
        watch(world, finished, Thread.currentThread());
        long start = System.nanoTime();
        try (world) {
            scenario.run(world);
        } catch (Throwable e) {
            Throwable cause = e instanceof java.lang.reflect.InvocationTargetException ? e.getCause() : e;
            world.report.fail(world.scenario, cause + " at " + Arrays.stream(cause.getStackTrace())
                .filter(frame -> frame.getClassName().startsWith("ringmq.")).findFirst().map(Object::toString).orElse("?"));
        } finally {
            finished.countDown();
        }
        world.report.note(world.scenario + " took " + TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - start) + " ms");
    }

    /** A client that hangs must not hang the suite: it ends the process, with a FAIL that says where it hung. */
    private static void watch(World world, CountDownLatch finished, Thread main) {
        Thread watchdog = new Thread(() -> {
            try {
                if (!finished.await(WATCHDOG_SECONDS, TimeUnit.SECONDS)) {
                    world.report.fail(world.scenario, "hung for " + WATCHDOG_SECONDS + " s at " + Arrays.toString(main.getStackTrace()));
                    world.report.summary();
                    Runtime.getRuntime().halt(1);
                }
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }, "watchdog");
        watchdog.setDaemon(true);
        watchdog.start();
    }

    /** Must run before any client class is loaded: logs and broadcast offsets otherwise go to the home directory. */
    private static void keepClientFilesHere() throws Exception {
        String given = System.getProperty("interop.dir");
        Path dir = given == null ? Files.createTempDirectory("ringmq-interop-") : Path.of(given).toAbsolutePath();
        String logs = dir.resolve("logs").toString();
        System.setProperty("rocketmq.client.logRoot", logs);
        System.setProperty("rocketmq.log.root", logs);
        System.setProperty("rocketmq.client.localOffsetStoreDir", dir.resolve("offsets").toString());
        // Longer than any step takes on a broker's notification, shorter than a check waits: a client whose rebalance thread is
        // woken just as it goes to sleep misses that and all later calls until its timer, and its shutdown waits for it too.
        System.setProperty("rocketmq.client.rebalance.waitInterval", "20000");
    }
}
