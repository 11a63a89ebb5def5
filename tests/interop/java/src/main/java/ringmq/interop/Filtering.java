package ringmq.interop;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.PullCallback;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.common.MQVersion;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;

/** SQL92 filters. Clients do not look at what they get a second time, so the broker's choice is what arrives. */
final class Filtering {
    private static final int PARSE_FAILED = 23;
    private static final List<String> COLOURS = List.of("red", "green", "blue");

    private Filtering() {
    }

    /** Every fifth message has no colour, every seventh a size that is no number. */
    private record Item(int number) {
        String colour() {
            return number % 5 == 0 ? null : COLOURS.get(number % 3);
        }

        boolean hasSize() {
            return number % 7 != 0;
        }

        double weight() {
            return number / 4.0;
        }

        Message message(String topic) {
            Message message = World.message(topic, number % 2 == 0 ? "TagA" : "TagB", "k" + number);
            if (colour() != null) {
                message.putUserProperty("colour", colour());
            }
            message.putUserProperty("size", hasSize() ? Integer.toString(number) : "unknown");
            message.putUserProperty("weight", Double.toString(weight()));
            message.putUserProperty("label", "item-" + number + " it's");
            return message;
        }
    }

    private static Map<String, Predicate<Item>> expressions() {
        Map<String, Predicate<Item>> expressions = new LinkedHashMap<>();
        expressions.put("colour = 'red' AND size BETWEEN 10 AND 40",
            item -> "red".equals(item.colour()) && item.hasSize() && item.number >= 10 && item.number <= 40);
        expressions.put("colour IS NULL", item -> item.colour() == null);
        expressions.put("colour IS NOT NULL AND colour <> 'blue'", item -> item.colour() != null && !item.colour().equals("blue"));
        // Where there is no colour NOT IN is unknown, and unknown is not TRUE.
        expressions.put("colour NOT IN ('red', 'blue')", item -> "green".equals(item.colour()));
        expressions.put("label CONTAINS 'm-1' AND weight >= 2.5", item -> ("item-" + item.number).contains("m-1") && item.weight() >= 2.5);
        expressions.put("label = 'item-8 it''s' or TAGS = 'TagA' and not (weight < 12.0)",
            item -> item.number == 8 || item.number % 2 == 0 && item.weight() >= 12);
        expressions.put("colour IN ('red') OR size > 50", item -> "red".equals(item.colour()) || item.hasSize() && item.number > 50);
        return expressions;
    }

    static void sql(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Map<String, Predicate<Item>> expressions = expressions();
        Map<String, Inbox> inboxes = new TreeMap<>();
        Map<String, Set<String>> expected = new TreeMap<>();
        List<DefaultMQPushConsumer> consumers = new ArrayList<>();
        int number = 0;
        for (String expression : expressions.keySet()) {
            Inbox inbox = new Inbox();
            inboxes.put(expression, inbox);
            expected.put(expression, new TreeSet<>());
            DefaultMQPushConsumer consumer = world.push(world.name("g" + number++));
            // What comes last in each queue matches whatever the expression: it tells that everything before was looked at.
            consumer.subscribe(topic, MessageSelector.bySql("fence IS NOT NULL OR " + expression));
            consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
                inbox.add(batch);
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            consumers.add(consumer);
        }
        // The first half is there before the consumers are, the second comes onto held pulls.
        send(world, queues, expressions, expected, 0, 40);
        for (DefaultMQPushConsumer consumer : consumers) {
            consumer.start();
        }
        send(world, queues, expressions, expected, 40, 80);
        for (MessageQueue queue : queues) {
            String key = "fence-" + queue.getBrokerName() + "-" + queue.getQueueId();
            Message fence = World.message(topic, "Fence", key);
            fence.putUserProperty("fence", "yes");
            world.producer().send(fence, queue);
            expected.values().forEach(keys -> keys.add(key));
        }
        for (String expression : expressions.keySet()) {
            inboxes.get(expression).awaitKeys(expected.get(expression));
        }
        consumers.forEach(DefaultMQPushConsumer::shutdown);
        for (String expression : expressions.keySet()) {
            world.report.equal(world.check("push " + expression), "", inboxes.get(expression).differenceFrom(expected.get(expression)));
        }
        wrong(world, topic);
        pull(world, topic);
        // The 4.9 client's lite consumer is not sent to the broker with a filter it could be asked about.
        if (MQVersion.getVersionDesc(MQVersion.CURRENT_VERSION).startsWith("V5")) {
            lite(world, topic, expected);
        }
    }

    private static void send(World world, List<MessageQueue> queues, Map<String, Predicate<Item>> expressions,
        Map<String, Set<String>> expected, int from, int to) throws Exception {
        for (int i = from; i < to; i++) {
            Item item = new Item(i);
            world.producer().send(item.message(queues.get(0).getTopic()), queues.get(i % queues.size()));
            expressions.forEach((expression, accepts) -> {
                if (accepts.test(item)) {
                    expected.get(expression).add("k" + item.number);
                }
            });
        }
    }

    /** A wrong expression ends start(), with the broker's words. */
    private static void wrong(World world, String topic) throws Exception {
        int number = 0;
        for (String expression : List.of("colour LIKE 'r%'", "size > 'ten'", "colour = ", "size IN (1, 2)", "size BETWEEN 9 AND 3", "(((")) {
            DefaultMQPushConsumer consumer = world.push(world.name("bad" + number++));
            consumer.subscribe(topic, MessageSelector.bySql(expression));
            consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> ConsumeConcurrentlyStatus.CONSUME_SUCCESS);
            String outcome = "started";
            try {
                consumer.start();
            } catch (MQClientException refused) {
                outcome = refused.getResponseCode() + " " + (refused.getMessage().contains("parse") ? "says why" : refused.getMessage());
            }
            world.report.equal(world.check("start refused: " + expression), PARSE_FAILED + " says why", outcome);
        }
    }

    /** A pull that brings its own expression; at the end of the queue it waits for a message that is wanted. */
    private static void pull(World world, String topic) throws Exception {
        DefaultMQPullConsumer consumer = world.pull(world.name("pull"));
        MessageQueue queue = world.queues(topic).get(0);
        // A client asks a broker for SQL only once a heartbeat has told it the broker's version.
        Await.until(() -> consumer.pull(queue, MessageSelector.bySql("fence IS NULL"), 0, 1) != null);
        List<String> keys = new ArrayList<>();
        long end = consumer.maxOffset(queue);
        for (long offset = 0; offset < end;) {
            PullResult result = consumer.pull(queue, MessageSelector.bySql("colour = 'red'"), offset, 4);
            if (result.getPullStatus() == PullStatus.FOUND) {
                result.getMsgFoundList().forEach(message -> keys.add(message.getKeys()));
            }
            if (result.getNextBeginOffset() <= offset) {
                throw new IllegalStateException("no progress at " + offset + ": " + result);
            }
            offset = result.getNextBeginOffset();
        }
        int step = world.queues(topic).size();
        List<String> red = new ArrayList<>();
        for (int i = 0; i < 80; i += step) {
            if ("red".equals(new Item(i).colour())) {
                red.add("k" + i);
            }
        }
        world.report.equal(world.check("pull"), red, keys);

        try {
            consumer.pull(queue, MessageSelector.bySql("colour LIKE 'r%'"), 0, 4);
            world.report.fail(world.check("pull refused"), "answered");
        } catch (MQBrokerException refused) {
            world.report.equal(world.check("pull refused"), PARSE_FAILED, refused.getResponseCode());
        }

        CompletableFuture<PullResult> held = new CompletableFuture<>();
        consumer.pullBlockIfNotFound(queue, "TagA", end, 1, new PullCallback() {
            @Override
            public void onSuccess(PullResult result) {
                held.complete(result);
            }

            @Override
            public void onException(Throwable e) {
                held.completeExceptionally(e);
            }
        });
        world.producer().send(new Item(8).message(topic), queue);
        world.report.equal(world.check("tags still wake"), "k8",
            held.get(Await.SECONDS, TimeUnit.SECONDS).getMsgFoundList().get(0).getKeys());
    }

    private static void lite(World world, String topic, Map<String, Set<String>> expected) throws Exception {
        String expression = "colour = 'red' AND size BETWEEN 10 AND 40";
        DefaultLitePullConsumer consumer = world.lite(world.name("lite"));
        consumer.subscribe(topic, MessageSelector.bySql("fence IS NOT NULL OR " + expression));
        consumer.start();
        Inbox inbox = new Inbox();
        Set<String> keys = expected.get(expression);
        Await.until(() -> {
            inbox.add(consumer.poll(500));
            return inbox.counts().keySet().containsAll(keys);
        });
        world.report.equal(world.check("lite"), "", inbox.differenceFrom(keys));
    }
}
