package ringmq.interop;

import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** DefaultMQPushConsumer: what is sent before and while it runs is delivered, once, to whom it belongs. */
final class Pushing {
    private Pushing() {
    }

    static void concurrent(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 4);
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "before-", 100));
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = world.pushInto(inbox, world.name("g"), topic, "*");
        world.report.check(world.check("sent_before_start_arrives"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        // From here on the consumer's pulls are held by the broker until something arrives.
        for (int round = 0; round < 5; round++) {
            Collection<String> more = world.sendTo(queues, "T", "held-" + round + "-", queues.size());
            keys.addAll(more);
            world.report.check(world.check("held_pull_wakes." + round), inbox.awaitKeys(more), "missing of " + more);
        }
        keys.addAll(world.sendTo(queues, "T", "after-", 200));
        keys.addAll(world.sendFence(topic, "T", "end"));
        world.report.check(world.check("sent_while_running_arrives"), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
        consumer.shutdown();
        world.report.equal(world.check("each_once"), "", inbox.differenceFrom(keys));
    }

    static void tags(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        Map<String, Inbox> inboxes = new TreeMap<>();
        Map<String, Set<String>> expected = new TreeMap<>();
        List<DefaultMQPushConsumer> consumers = new ArrayList<>();
        // "AaTag" and "BBTag" have the same Java hash code: telling them apart takes the client's second look.
        Map<String, Set<String>> expressions = Map.of("TagA || TagB", Set.of("TagA", "TagB"), "TagC", Set.of("TagC"),
            "AaTag", Set.of("AaTag"), "*", Set.of("TagA", "TagB", "TagC", "AaTag", "BBTag", "Tag-ÄÖ"));
        List<String> tags = List.of("TagA", "TagB", "TagC", "AaTag", "BBTag", "Tag-ÄÖ");
        int number = 0;
        for (Map.Entry<String, Set<String>> expression : expressions.entrySet()) {
            Inbox inbox = new Inbox();
            consumers.add(world.pushInto(inbox, world.name("g" + number++), topic, expression.getKey()));
            inboxes.put(expression.getKey(), inbox);
            expected.put(expression.getKey(), new TreeSet<>());
        }
        for (String tag : tags) {
            List<String> sent = new ArrayList<>(world.sendTo(queues, tag, tag + "-", 20));
            sent.addAll(world.sendFence(topic, tag, tag));
            expressions.forEach((expression, accepted) -> {
                if (accepted.contains(tag)) {
                    expected.get(expression).addAll(sent);
                }
            });
        }
        for (String expression : expressions.keySet()) {
            inboxes.get(expression).awaitKeys(expected.get(expression));
        }
        consumers.forEach(DefaultMQPushConsumer::shutdown);
        for (String expression : expressions.keySet()) {
            world.report.equal(world.check("subscribed to " + expression), "", inboxes.get(expression).differenceFrom(expected.get(expression)));
        }
    }

    static void broadcast(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        String group = world.name("g");
        List<Inbox> inboxes = List.of(new Inbox(), new Inbox());
        List<DefaultMQPushConsumer> consumers = new ArrayList<>();
        for (Inbox inbox : inboxes) {
            DefaultMQPushConsumer consumer = world.push(group);
            // MessageModel lives in other packages in 4.9 and in 5.x.
            consumer.setMessageModel(Enum.valueOf(consumer.getMessageModel().getDeclaringClass(), "BROADCASTING"));
            consumer.subscribe(topic, "*");
            consumer.registerMessageListener((org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently) (batch, context) -> {
                inbox.add(batch);
                return org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            consumer.start();
            consumers.add(consumer);
        }
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k", 60));
        keys.addAll(world.sendFence(topic, "T", "end"));
        for (Inbox inbox : inboxes) {
            inbox.awaitKeys(keys);
        }
        consumers.forEach(DefaultMQPushConsumer::shutdown);
        for (int i = 0; i < inboxes.size(); i++) {
            world.report.equal(world.check("consumer_" + i + "_gets_each_once"), "", inboxes.get(i).differenceFrom(keys));
        }
    }

    /** Order within each queue, one batch of a queue at a time; a second consumer goes on where the first left off. */
    static void orderly(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        String group = world.name("g");
        Inbox inbox = new Inbox();
        Map<MessageQueue, AtomicInteger> inside = new ConcurrentHashMap<>();
        ConcurrentLinkedQueue<String> overlaps = new ConcurrentLinkedQueue<>();
        MessageListenerOrderly listener = (batch, context) -> {
            AtomicInteger running = inside.computeIfAbsent(context.getMessageQueue(), queue -> new AtomicInteger());
            if (running.incrementAndGet() != 1) {
                overlaps.add(context.getMessageQueue().toString());
            }
            inbox.add(batch);
            running.decrementAndGet();
            return ConsumeOrderlyStatus.SUCCESS;
        };
        Set<String> keys = new TreeSet<>();
        for (int turn = 0; turn < 2; turn++) {
            keys.addAll(world.sendTo(queues, "T", turn + "-before-", 60));
            DefaultMQPushConsumer consumer = world.push(group);
            consumer.subscribe(topic, "*");
            consumer.registerMessageListener(listener);
            consumer.start();
            keys.addAll(world.sendTo(queues, "T", turn + "-while-", 60));
            keys.addAll(world.sendFence(topic, "T", "end-" + turn));
            world.report.check(world.check("all_arrive." + turn), inbox.awaitKeys(keys), inbox.differenceFrom(keys));
            consumer.shutdown();
        }
        world.report.equal(world.check("each_once"), "", inbox.differenceFrom(keys));
        world.report.check(world.check("one_at_a_time_per_queue"), overlaps.isEmpty(), overlaps.toString());
        List<String> disordered = new ArrayList<>();
        inbox.offsets().forEach((queue, offsets) -> {
            if (!offsets.equals(offsets.stream().sorted().toList())) {
                disordered.add(queue + ": " + offsets);
            }
        });
        world.report.check(world.check("order_within_queue"), disordered.isEmpty(), disordered.toString());
    }

    /**
     * A second consumer joins a group and leaves it. The broker's notification alone must make the first give up queues
     * and take them back: the client's own timer is set beyond the end of the waits (see Main).
     */
    static void rebalance(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 4);
        String group = world.name("g");
        Set<MessageQueue> all = new HashSet<>(queues);
        Inbox first = new Inbox();
        Inbox second = new Inbox();

        DefaultMQPushConsumer stays = world.pushInto(first, group, topic, "*");
        world.report.check(world.check("alone_has_all"), Await.until(() -> assigned(stays, topic).equals(all)),
            assigned(stays, topic).toString());
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "alone-", 40));
        world.report.check(world.check("alone_gets_all"), first.awaitKeys(keys), first.differenceFrom(keys));

        DefaultMQPushConsumer leaves = world.pushInto(second, group, topic, "*");
        boolean split = Await.until(() -> {
            Set<MessageQueue> union = new HashSet<>(assigned(stays, topic));
            union.addAll(assigned(leaves, topic));
            return union.equals(all) && assigned(stays, topic).size() * 2 == all.size() && assigned(leaves, topic).size() * 2 == all.size();
        });
        world.report.check(world.check("split_in_halves"), split, assigned(stays, topic) + " and " + assigned(leaves, topic));
        Set<String> both = new TreeSet<>(world.sendTo(queues, "T", "both-", 40));
        both.addAll(world.sendFence(topic, "T", "both"));
        boolean arrived = Await.until(() -> {
            Set<String> got = new TreeSet<>(first.counts().keySet());
            got.addAll(second.counts().keySet());
            return got.containsAll(both);
        });
        world.report.check(world.check("both_get_all"), arrived, "between them they lack some of " + both);
        world.report.check(world.check("both_get_some"), holdsAny(first, both) && holdsAny(second, both),
            "one of two consumers got nothing of " + both.size());
        keys.addAll(both);

        leaves.shutdown();
        world.report.check(world.check("alone_again_has_all"), Await.until(() -> assigned(stays, topic).equals(all)),
            assigned(stays, topic).toString());
        Set<String> after = new TreeSet<>(world.sendTo(queues, "T", "after-", 40));
        world.report.check(world.check("alone_again_gets_all"), first.awaitKeys(after), first.differenceFrom(after));
        keys.addAll(after);

        Set<String> got = new TreeSet<>(first.counts().keySet());
        got.addAll(second.counts().keySet());
        world.report.equal(world.check("nothing_lost"), keys, got);
    }

    private static boolean holdsAny(Inbox inbox, Set<String> keys) {
        return inbox.all().stream().map(MessageExt::getKeys).anyMatch(keys::contains);
    }

    private static Set<MessageQueue> assigned(DefaultMQPushConsumer consumer, String topic) {
        Set<MessageQueue> queues = new HashSet<>();
        consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().keySet().forEach(queue -> {
            if (queue.getTopic().equals(topic)) {
                queues.add(queue);
            }
        });
        return queues;
    }
}
