package ringmq.interop;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.LongStream;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.common.UtilAll;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Push consumers when something stands in their way: no offset yet, a slow handler, a refused message, a crash. */
final class Consuming {
    /** A queue of a consumer that crashed is locked for 60 s, and its heir asks for it every 20 s. */
    private static final int HEIR_SECONDS = 110;
    /** How long messages of {@link #consumeFromAged} live: longer than a client takes to begin. */
    private static final int AGE_SECONDS = 40;

    private Consuming() {
    }

    /** Where a group begins that has no offsets yet, and where one goes on that has. */
    static void consumeFrom(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        Set<String> before = new TreeSet<>(world.sendTo(queues, "T", "before-", 20));
        Map<ConsumeFromWhere, String> groups = new TreeMap<>(Map.of(
            ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET, world.name("first"),
            ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET, world.name("last"),
            ConsumeFromWhere.CONSUME_FROM_TIMESTAMP, world.name("timestamp")));
        // On a topic from which nothing was deleted yet a new group begins with the first message, whatever it asks for.
        for (Map.Entry<ConsumeFromWhere, String> entry : groups.entrySet()) {
            Inbox inbox = new Inbox();
            DefaultMQPushConsumer consumer = start(world, entry, topic, inbox);
            world.report.check(world.check(entry.getKey() + ".young_topic"), inbox.awaitKeys(before), inbox.differenceFrom(before));
            consumer.shutdown();
            Pulling.awaitCommitted(world, entry.getValue(), queues, 20L / queues.size());
        }
        Set<String> after = new TreeSet<>(world.sendTo(queues, "T", "after-", 10));
        for (Map.Entry<ConsumeFromWhere, String> entry : groups.entrySet()) {
            Inbox inbox = new Inbox();
            DefaultMQPushConsumer consumer = start(world, entry, topic, inbox);
            inbox.awaitKeys(after);
            consumer.shutdown();
            world.report.equal(world.check(entry.getKey() + ".known_group_goes_on"), "", inbox.differenceFrom(after));
        }
    }

    /**
     * A topic that has lost its beginning: there a new group begins as it asks, with the first message that is left, behind the
     * last one, or with the first one since a time; and goes on from there without a gap.
     */
    static void consumeFromAged(World world) throws Exception {
        if (System.getProperty("rocketmq.serialize.type", "JSON").equals("ROCKETMQ")) {
            world.report.note(world.scenario + ": with the other codec only, as it waits for messages to go");
            return;
        }
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopicWithRetention(topic, AGE_SECONDS + "s");
        world.sendTo(queues, "T", "lost-", 20);
        Map<MessageQueue, Long> lost = ends(world, queues);
        boolean aged = Await.until(2 * AGE_SECONDS, () -> begins(world, queues).equals(lost));
        world.report.check(world.check("topic_loses_its_beginning"), aged, begins(world, queues) + " of " + lost);
        world.sendTo(queues, "T", "left-", 20);
        // A consumer's time is in whole seconds, and the broker's clock is not quite this one.
        long time = (System.currentTimeMillis() / 1_000 + 2) * 1_000;
        Await.until(() -> System.currentTimeMillis() > time + 1_000);
        Map<MessageQueue, Long> since = ends(world, queues);
        world.sendTo(queues, "T", "since-", 20);

        Map<MessageQueue, Long> ends = ends(world, queues);
        Map<MessageQueue, Long> begins = begins(world, queues);
        Map<ConsumeFromWhere, Inbox> inboxes = new TreeMap<>();
        List<DefaultMQPushConsumer> consumers = new ArrayList<>();
        for (ConsumeFromWhere rule : List.of(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET,
            ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET, ConsumeFromWhere.CONSUME_FROM_TIMESTAMP)) {
            inboxes.put(rule, new Inbox());
            DefaultMQPushConsumer consumer = consumer(world, Map.entry(rule, world.name(rule.name())), topic, inboxes.get(rule));
            consumer.setConsumeTimestamp(UtilAll.timeMillisToHumanString3(time));
            consumer.start();
            consumers.add(consumer);
        }
        // The first offset is told to a client when it asks for what is before it; 4.9 and Go then take up to half a minute.
        long[] next = {System.nanoTime()};
        Await.until(60, () -> {
            if (System.nanoTime() >= next[0]) {
                world.sendFence(topic, "T", "at-" + next[0]);
                next[0] += TimeUnit.SECONDS.toNanos(1);
            }
            return inboxes.values().stream().allMatch(inbox -> inbox.offsets().size() == queues.size());
        });
        Map<MessageQueue, Long> beginsLater = begins(world, queues);
        List<String> last = world.sendFence(topic, "T", "end");
        for (Map.Entry<ConsumeFromWhere, Inbox> entry : inboxes.entrySet()) {
            entry.getValue().awaitKeys(last);
        }
        consumers.forEach(DefaultMQPushConsumer::shutdown);
        Map<MessageQueue, Long> endsLater = ends(world, queues);
        inboxes.forEach((rule, inbox) -> {
            List<String> wrong = new ArrayList<>();
            List<String> gaps = new ArrayList<>();
            for (MessageQueue queue : queues) {
                List<Long> given = new ArrayList<>(inbox.offsets().getOrDefault(queue, List.of()));
                Collections.sort(given);
                // Where it had to begin, if it was slow: messages go on going.
                long from;
                long to;
                switch (rule) {
                    case CONSUME_FROM_FIRST_OFFSET -> {
                        from = begins.get(queue);
                        to = beginsLater.get(queue);
                    }
                    case CONSUME_FROM_LAST_OFFSET -> {
                        from = ends.get(queue);
                        to = endsLater.get(queue);
                    }
                    default -> {
                        from = Math.max(since.get(queue), begins.get(queue));
                        to = Math.max(since.get(queue), beginsLater.get(queue));
                    }
                }
                if (given.isEmpty() || given.get(0) < from || given.get(0) > to) {
                    wrong.add(queue + ": " + given + ", not from " + from + " to " + to + " on");
                } else if (!given.equals(LongStream.range(given.get(0), endsLater.get(queue)).boxed().toList())) {
                    gaps.add(queue + ": " + given);
                }
            }
            world.report.check(world.check(rule + ".begins_there"), wrong.isEmpty(), wrong.toString());
            world.report.check(world.check(rule + ".goes_on_without_a_gap"), gaps.isEmpty(), gaps.toString());
        });
    }

    private static Map<MessageQueue, Long> begins(World world, List<MessageQueue> queues) throws Exception {
        Map<MessageQueue, Long> begins = new TreeMap<>();
        for (MessageQueue queue : queues) {
            begins.put(queue, world.producer().minOffset(queue));
        }
        return begins;
    }

    private static Map<MessageQueue, Long> ends(World world, List<MessageQueue> queues) throws Exception {
        Map<MessageQueue, Long> ends = new TreeMap<>();
        for (MessageQueue queue : queues) {
            ends.put(queue, world.producer().maxOffset(queue));
        }
        return ends;
    }

    private static DefaultMQPushConsumer start(World world, Map.Entry<ConsumeFromWhere, String> rule, String topic, Inbox inbox) throws Exception {
        DefaultMQPushConsumer consumer = consumer(world, rule, topic, inbox);
        consumer.start();
        return consumer;
    }

    private static DefaultMQPushConsumer consumer(World world, Map.Entry<ConsumeFromWhere, String> rule, String topic, Inbox inbox) throws Exception {
        DefaultMQPushConsumer consumer = world.push(rule.getValue());
        consumer.setConsumeFromWhere(rule.getKey());
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            inbox.add(batch);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        return consumer;
    }

    /** A pull that finds nothing is answered when its time is over, and not before. */
    static void longPoll(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(world.name("g"));
        consumer.setBrokerSuspendMaxTimeMillis(1_500);
        world.start(consumer);
        for (MessageQueue queue : queues) {
            long begun = System.nanoTime();
            PullResult result = consumer.pullBlockIfNotFound(queue, "*", 0, 32);
            long took = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - begun);
            // The broker's clock is one of milliseconds, read once a turn.
            world.report.check(world.check("held_until_its_time." + queue.getBrokerName()),
                result.getPullStatus() == PullStatus.NO_NEW_MSG && took >= 1_490, result + " after " + took + " ms");
        }
    }

    /** A consumer whose handler stands still pulls no more than it may keep; what waits at the broker comes when it moves again. */
    static void flowControl(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        int perQueue = 300;
        int threshold = 40;
        int batch = 16;
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k", perQueue * queues.size()));
        CountDownLatch gate = new CountDownLatch(1);
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = world.push(world.name("g"));
        consumer.setPullThresholdForQueue(threshold);
        consumer.setPullBatchSize(batch);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            try {
                gate.await();
            } catch (InterruptedException e) {
                return ConsumeConcurrentlyStatus.RECONSUME_LATER;
            }
            inbox.add(messages);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        Map<MessageQueue, Integer> most = new HashMap<>();
        boolean held = Await.until(() -> {
            cached(consumer, topic).forEach((queue, count) -> most.merge(queue, count, Math::max));
            return most.size() == queues.size() && most.values().stream().allMatch(count -> count > threshold);
        });
        world.report.check(world.check("pulls_until_the_threshold"), held, most.toString());
        // A pull that is under way when the threshold is passed may still bring its batch.
        world.report.check(world.check("pulls_no_further"), cached(consumer, topic).values().stream().allMatch(count -> count <= threshold + batch),
            cached(consumer, topic).toString());
        gate.countDown();
        world.report.check(world.check("all_arrive_at_last"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        consumer.shutdown();
        world.report.equal(world.check("each_once"), "", inbox.differenceFrom(keys));
    }

    private static Map<MessageQueue, Integer> cached(DefaultMQPushConsumer consumer, String topic) {
        Map<MessageQueue, Integer> cached = new TreeMap<>();
        consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().forEach((queue, process) -> {
            if (queue.getTopic().equals(topic)) {
                cached.put(queue, (int) process.getMsgCount().get());
            }
        });
        return cached;
    }

    /** What is suspended comes again in its place: nothing of its queue comes before it. */
    static void orderlySuspend(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        Set<String> refused = Set.of("k4", "k5");
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k", 20));
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = world.push(world.name("g"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerOrderly) (batch, context) -> {
            inbox.add(batch);
            MessageExt message = batch.get(0);
            if (refused.contains(message.getKeys()) && message.getReconsumeTimes() < 2) {
                context.setSuspendCurrentQueueTimeMillis(50);
                return ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT;
            }
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();
        world.report.check(world.check("all_arrive"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        consumer.shutdown();
        Map<MessageQueue, List<String>> wanted = new TreeMap<>();
        for (int i = 0; i < 20; i++) {
            List<String> queue = wanted.computeIfAbsent(queues.get(i % queues.size()), key -> new ArrayList<>());
            for (int time = 0; time < (refused.contains("k" + i) ? 3 : 1); time++) {
                queue.add("k" + i);
            }
        }
        Map<MessageQueue, List<String>> got = new TreeMap<>();
        inbox.all().forEach(message -> got.computeIfAbsent(World.queueOf(message), key -> new ArrayList<>()).add(message.getKeys()));
        world.report.equal(world.check("suspended_come_again_in_place"), wanted, got);
    }

    /** Kills the broker, and returns when it is back. */
    static void restartBroker(World world) throws Exception {
        String command = System.getProperty("interop.restart");
        if (command == null) {
            throw new IllegalStateException("no command was given that restarts the broker (--restart)");
        }
        Process restart = new ProcessBuilder("/bin/sh", "-c", command).redirectErrorStream(true)
            .redirectOutput(ProcessBuilder.Redirect.DISCARD).start();
        boolean restarted = restart.waitFor(60, TimeUnit.SECONDS) && restart.exitValue() == 0;
        world.report.check(world.check("restarted"), restarted, "the command failed or hangs: " + command);
    }

    /** The broker is killed and started again under an orderly consumer: no gap in any queue, and one message at a time. */
    static void orderlyRestart(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Inbox inbox = new Inbox();
        Map<MessageQueue, AtomicInteger> inside = new TreeMap<>();
        queues.forEach(queue -> inside.put(queue, new AtomicInteger()));
        AtomicInteger overlaps = new AtomicInteger();
        DefaultMQPushConsumer consumer = world.push(world.name("g"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerOrderly) (batch, context) -> {
            AtomicInteger running = inside.get(context.getMessageQueue());
            if (running.incrementAndGet() != 1) {
                overlaps.incrementAndGet();
            }
            inbox.add(batch);
            running.decrementAndGet();
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();
        Set<String> acknowledged = new TreeSet<>(world.sendTo(queues, "T", "before-", 40));
        inbox.awaitKeys(acknowledged);
        AtomicBoolean isBack = new AtomicBoolean();
        Thread sender = new Thread(() -> {
            for (int i = 0; !isBack.get(); i++) {
                String key = "while-" + i;
                try {
                    world.producer().send(World.message(topic, "T", key), queues.get(i % queues.size()));
                    synchronized (acknowledged) {
                        acknowledged.add(key);
                    }
                } catch (Exception unknown) {
                    // It may be there or not.
                }
            }
        });
        sender.start();
        try {
            restartBroker(world);
        } finally {
            isBack.set(true);
        }
        sender.join();
        Await.until(() -> acknowledged.addAll(world.sendFence(topic, "T", "end")));
        world.report.check(world.check("all_acknowledged_arrive"), inbox.awaitKeys(acknowledged), "missing of " + acknowledged.size());
        consumer.shutdown();
        world.report.check(world.check("one_at_a_time_per_queue"), overlaps.get() == 0, overlaps + " times");
        world.report.equal(world.check("no_gap_in_any_queue"), List.of(), gaps(inbox.offsets()));
    }

    /** Places where a queue goes on neither with the next offset nor with one that came before. */
    private static List<String> gaps(Map<MessageQueue, List<Long>> offsets) {
        List<String> gaps = new ArrayList<>();
        offsets.forEach((queue, sequence) -> {
            long last = -1;
            for (long offset : sequence) {
                if (offset > last + 1) {
                    gaps.add(queue + ": " + offset + " after " + last);
                }
                last = offset;
            }
        });
        return gaps;
    }

    private static String crashName(World world, String suffix) {
        return "it-" + world.runId + "-orderly_crash-" + suffix;
    }

    /** The process of an orderly consumer is killed: its heir goes on without a gap when the locks have ended. */
    static void orderlyCrash(World world) throws Exception {
        if (System.getProperty("rocketmq.serialize.type", "JSON").equals("ROCKETMQ")) {
            world.report.note(world.scenario + ": with the other codec only, as it waits for the end of a lock");
            return;
        }
        String topic = crashName(world, "t");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "before-", 40));
        List<String> command = new ArrayList<>(List.of(ProcessHandle.current().info().command().orElse("java"), "-cp", System.getProperty("java.class.path")));
        System.getProperties().stringPropertyNames().stream().filter(name -> name.startsWith("interop.") || name.startsWith("rocketmq."))
            .forEach(name -> command.add("-D" + name + "=" + System.getProperty(name)));
        Collection<String> arguments = List.of("ringmq.interop.Main", world.namesrv, "orderly_victim", world.runId);
        command.addAll(arguments);
        Process victim = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.DISCARD).start();
        Map<MessageQueue, List<Long>> offsets = new TreeMap<>();
        try (BufferedReader lines = new BufferedReader(new InputStreamReader(victim.getInputStream(), StandardCharsets.UTF_8))) {
            // It is killed while it handles a message that it was given for the first time.
            int left = 20;
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                String[] words = line.split(" ");
                if (words[0].equals("GIVEN")) {
                    MessageQueue queue = new MessageQueue(topic, words[1], Integer.parseInt(words[2]));
                    offsets.computeIfAbsent(queue, key -> new ArrayList<>()).add(Long.parseLong(words[3]));
                    if (--left == 0) {
                        victim.destroyForcibly();
                    }
                }
            }
        } catch (IOException closed) {
            // So ends the output of a process that is killed.
        } finally {
            victim.destroyForcibly().waitFor();
        }
        world.report.check(world.check("victim_had_begun"), offsets.values().stream().mapToInt(List::size).sum() >= 20, offsets.toString());
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer heir = orderly(world, crashName(world, "g"), topic, inbox, false);
        keys.addAll(world.sendTo(queues, "T", "after-", 20));
        Map<MessageQueue, Long> ends = ends(world, queues);
        ends.replaceAll((queue, end) -> end - 1);
        Await.until(HEIR_SECONDS, () -> ends.entrySet().stream().allMatch(end ->
            inbox.offsets().getOrDefault(end.getKey(), List.of()).contains(end.getValue())));
        heir.shutdown();
        inbox.offsets().forEach((queue, given) -> offsets.computeIfAbsent(queue, key -> new ArrayList<>()).addAll(given));
        Map<MessageQueue, Long> reached = new TreeMap<>();
        offsets.forEach((queue, given) -> reached.put(queue, given.get(given.size() - 1)));
        world.report.equal(world.check("heir_reaches_the_ends"), ends, reached);
        world.report.equal(world.check("no_gap_between_victim_and_heir"), List.of(), gaps(offsets));
    }

    /** What {@link #orderlyCrash} kills. */
    static void orderlyVictim(World world) throws Exception {
        orderly(world, crashName(world, "g"), crashName(world, "t"), new Inbox(), true);
        // Until it is killed, or whoever started it is gone.
        ProcessHandle.current().parent().ifPresent(parent -> parent.onExit().join());
    }

    private static DefaultMQPushConsumer orderly(World world, String group, String topic, Inbox inbox, boolean tells) throws Exception {
        DefaultMQPushConsumer consumer = world.push(group);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerOrderly) (batch, context) -> {
            inbox.add(batch);
            for (MessageExt message : batch) {
                if (tells) {
                    world.report.tell("GIVEN " + message.getBrokerName() + " " + message.getQueueId() + " " + message.getQueueOffset());
                }
            }
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();
        return consumer;
    }
}
