package ringmq.interop;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullCallback;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** The two pull consumers, and the offset and message look-ups of any client. */
final class Pulling {
    private Pulling() {
    }

    static void lite(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        int perQueue = 20;
        Set<String> keys = new TreeSet<>(world.sendTo(queues, "T", "k", perQueue * queues.size()));
        world.sendTo(queues, "Other", "other", queues.size());

        // Subscribed: queues come from the group's rebalance, the position from what was committed.
        String group = world.name("g");
        DefaultLitePullConsumer subscribed = world.lite(group);
        subscribed.subscribe(topic, "T");
        subscribed.start();
        Inbox inbox = new Inbox();
        world.report.check(world.check("subscribe.all_arrive"), poll(subscribed, inbox, keys), inbox.differenceFrom(keys));
        world.report.equal(world.check("subscribe.each_once"), "", inbox.differenceFrom(keys));
        world.report.equal(world.check("subscribe.assignment"), new TreeSet<>(queues), new TreeSet<>(subscribed.assignment()));
        subscribed.commitSync();
        subscribed.shutdown();
        Map<MessageQueue, Long> committed = awaitCommitted(world, group, queues, perQueue);
        // Whether the filtered message behind the last one read counts as read depends on how far the client pulled.
        world.report.check(world.check("subscribe.committed"),
            committed.values().stream().allMatch(offset -> offset == perQueue || offset == perQueue + 1), committed.toString());

        DefaultLitePullConsumer again = world.lite(group);
        again.subscribe(topic, "T");
        again.start();
        Set<String> more = new TreeSet<>(world.sendTo(queues, "T", "more", 10));
        Inbox later = new Inbox();
        world.report.check(world.check("subscribe.goes_on"), poll(again, later, more), later.differenceFrom(more));
        world.report.equal(world.check("subscribe.goes_on_where_committed"), "", later.differenceFrom(more));

        // Assigned: queues and positions are the caller's.
        MessageQueue queue = queues.get(0);
        MessageQueue other = queues.get(queues.size() - 1);
        DefaultLitePullConsumer assigned = world.lite(world.name("ga"));
        assigned.start();
        world.report.equal(world.check("assign.fetched_queues"), new TreeSet<>(queues), new TreeSet<>(assigned.fetchMessageQueues(topic)));
        assigned.assign(List.of(queue, other));
        assigned.seekToBegin(queue);
        assigned.seek(other, perQueue - 1);
        Collection<MessageExt> fromBegin = pollOffsets(assigned, queue, 0, perQueue);
        world.report.equal(world.check("assign.seek_to_begin"), (long) perQueue, (long) fromBegin.size());
        assigned.seek(queue, 7);
        world.report.equal(world.check("assign.seek"), perQueue - 7, pollOffsets(assigned, queue, 7, perQueue).size());
        assigned.seekToEnd(queue);
        SendResult last = world.producer().send(World.message(topic, "T", "at-end"), queue);
        Collection<MessageExt> atEnd = pollOffsets(assigned, queue, last.getQueueOffset(), last.getQueueOffset() + 1);
        world.report.equal(world.check("assign.seek_to_end"), List.of("at-end"), atEnd.stream().map(MessageExt::getKeys).toList());
        DefaultMQPullConsumer store = world.pull(world.name("ga"));
        // Repeated because a broker drops the one-way commit of a group that no heartbeat has told it of yet.
        boolean stored = Await.until(() -> {
            assigned.commitSync(Map.of(queue, 5L, other, 6L), true);
            return store.fetchConsumeOffset(queue, true) == 5 && store.fetchConsumeOffset(other, true) == 6;
        });
        world.report.check(world.check("assign.commit"), stored,
            store.fetchConsumeOffset(queue, true) + " and " + store.fetchConsumeOffset(other, true) + ", not 5 and 6");
        DefaultLitePullConsumer fresh = world.lite(world.name("ga"));
        fresh.start();
        world.report.equal(world.check("assign.committed"), List.of(5L, 6L), List.of(fresh.committed(queue), fresh.committed(other)));
        world.report.equal(world.check("assign.offset_for_timestamp"), 0L, fresh.offsetForTimestamp(queue, 1L));
    }

    static void pull(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 2);
        DefaultMQPullConsumer consumer = world.pull(world.name("g"));
        world.report.equal(world.check("fetched_queues"), new TreeSet<>(queues), new TreeSet<>(consumer.fetchSubscribeMessageQueues(topic)));
        MessageQueue queue = queues.get(0);
        int count = 50;
        List<MessageQueue> one = List.of(queue);
        world.report.equal(world.check("empty_queue"), PullStatus.NO_NEW_MSG, consumer.pull(queue, "*", 0, 32).getPullStatus());
        world.sendTo(one, "TagA", "a", count);
        world.readAll(topic, count);

        PullResult result = consumer.pull(queue, "*", 0, 8);
        world.report.equal(world.check("found"), List.of(PullStatus.FOUND, 8, 8L, 0L, (long) count),
            List.of(result.getPullStatus(), result.getMsgFoundList().size(), result.getNextBeginOffset(), result.getMinOffset(), result.getMaxOffset()));
        result = consumer.pull(queue, "TagA", 45, 32);
        world.report.equal(world.check("found_at_end"), List.of(PullStatus.FOUND, 5, 50L),
            List.of(result.getPullStatus(), result.getMsgFoundList().size(), result.getNextBeginOffset()));
        result = consumer.pull(queue, "*", count, 32);
        world.report.equal(world.check("at_end"), List.of(PullStatus.NO_NEW_MSG, 50L), List.of(result.getPullStatus(), result.getNextBeginOffset()));
        result = consumer.pull(queue, "*", count + 7, 32);
        world.report.equal(world.check("beyond_end"), List.of(PullStatus.OFFSET_ILLEGAL, 50L), List.of(result.getPullStatus(), result.getNextBeginOffset()));
        result = consumer.pull(queue, "TagB", 0, 32);
        world.report.equal(world.check("no_match"), PullStatus.NO_MATCHED_MSG, result.getPullStatus());
        world.report.check(world.check("no_match_moves_on"), result.getNextBeginOffset() > 0 && result.getNextBeginOffset() <= count,
            "next " + result.getNextBeginOffset());

        // A pull that finds nothing is held; a message that comes meanwhile answers it.
        CompletableFuture<PullResult> held = new CompletableFuture<>();
        consumer.pullBlockIfNotFound(queue, "TagB", count, 32, new PullCallback() {
            @Override
            public void onSuccess(PullResult found) {
                held.complete(found);
            }

            @Override
            public void onException(Throwable e) {
                held.completeExceptionally(e);
            }
        });
        world.sendTo(one, "TagA", "not-this", 1);
        world.sendTo(one, "TagB", "this", 1);
        PullResult woken = held.get(Await.SECONDS, TimeUnit.SECONDS);
        // A client woken without a match asks again from where it stands; the broker may also hold on by itself.
        long next = woken.getNextBeginOffset();
        if (woken.getPullStatus() == PullStatus.NO_MATCHED_MSG) {
            woken = consumer.pullBlockIfNotFound(queue, "TagB", next, 32);
        }
        world.report.equal(world.check("held_pull_wakes"), List.of("this0"),
            woken.getPullStatus() == PullStatus.FOUND ? woken.getMsgFoundList().stream().map(MessageExt::getKeys).toList() : woken);

        consumer.updateConsumeOffset(queue, 33);
        consumer.getDefaultMQPullConsumerImpl().persistConsumerOffset();
        consumer.getOffsetStore().persist(queue);
        boolean stored = Await.until(() -> consumer.fetchConsumeOffset(queue, true) == 33);
        world.report.check(world.check("offset_committed"), stored, "offset " + consumer.fetchConsumeOffset(queue, true) + ", not 33");
    }

    static void queryOffsets(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        MessageQueue queue = queues.get(0);
        DefaultMQProducer producer = world.producer();
        world.report.equal(world.check("empty.min_max"), List.of(0L, 0L), List.of(producer.minOffset(queue), producer.maxOffset(queue)));
        world.report.equal(world.check("empty.search"), 0L, producer.searchOffset(queue, System.currentTimeMillis()));
        int count = 30;
        world.sendTo(List.of(queue), "T", "k", count);
        List<MessageExt> stored = new ArrayList<>(world.readAll(topic, count).all());
        world.report.equal(world.check("min_max"), List.of(0L, (long) count), List.of(producer.minOffset(queue), producer.maxOffset(queue)));

        stored.removeIf(message -> !World.queueOf(message).equals(queue));
        TreeMap<Long, Long> firstAt = new TreeMap<>();
        stored.forEach(message -> firstAt.putIfAbsent(message.getStoreTimestamp(), message.getQueueOffset()));
        List<String> wrong = new ArrayList<>();
        for (long time = firstAt.firstKey(); time <= firstAt.lastKey(); time++) {
            long expected = firstAt.ceilingEntry(time).getValue();
            long got = producer.searchOffset(queue, time);
            if (got != expected) {
                wrong.add("at " + (time - firstAt.firstKey()) + " ms: " + got + ", not " + expected);
            }
        }
        world.report.note("store times span " + (firstAt.lastKey() - firstAt.firstKey()) + " ms, " + firstAt.size() + " distinct");
        world.report.check(world.check("search_by_time"), wrong.isEmpty(), wrong.toString());
        world.report.equal(world.check("search_before_first"), 0L, producer.searchOffset(queue, firstAt.firstKey() - 1000));
        world.report.equal(world.check("search_after_last"), (long) count, producer.searchOffset(queue, firstAt.lastKey() + 1));
        world.report.equal(world.check("earliest_store_time"), (long) firstAt.firstKey(), producer.earliestMsgStoreTime(queue));
    }

    static void viewById(World world) throws Exception {
        String topic = world.name("t");
        List<MessageQueue> queues = world.createTopic(topic, 1);
        for (MessageQueue queue : queues) {
            String key = "on-" + queue.getBrokerName();
            SendResult result = world.producer().send(World.message(topic, "T", key), queue);
            MessageExt found = world.producer().viewMessage(topic, result.getOffsetMsgId());
            world.report.equal(world.check("found." + queue.getBrokerName()), List.of(key, result.getMsgId(), result.getQueueOffset()),
                List.of(found.getKeys(), found.getMsgId(), found.getQueueOffset()));
            world.report.equal(world.check("body." + queue.getBrokerName()), World.message(topic, "T", key).getBody(), found.getBody());
            String beyond = result.getOffsetMsgId().substring(0, result.getOffsetMsgId().length() - 16) + "00000FFFFFFFFFF0";
            String answer = "found";
            try {
                if (world.producer().viewMessage(topic, beyond) == null) {
                    answer = "absent";
                }
            } catch (MQBrokerException | MQClientException e) {
                answer = "absent";
            }
            world.report.equal(world.check("absent." + queue.getBrokerName()), "absent", answer);
        }
    }

    private static boolean poll(DefaultLitePullConsumer consumer, Inbox inbox, Collection<String> keys) {
        return Await.until(() -> {
            inbox.add(consumer.poll(500));
            return inbox.counts().keySet().containsAll(keys);
        });
    }

    /**
     * Messages of the queue with offsets from..until, once the one before `until` was given. A pull that was under way when
     * the caller sought elsewhere may deliver its messages too, so each offset counts once.
     */
    private static Collection<MessageExt> pollOffsets(DefaultLitePullConsumer consumer, MessageQueue queue, long from, long until) {
        TreeMap<Long, MessageExt> found = new TreeMap<>();
        Await.until(() -> {
            for (MessageExt message : consumer.poll(500)) {
                long offset = message.getQueueOffset();
                if (World.queueOf(message).equals(queue) && offset >= from && offset < until) {
                    found.put(offset, message);
                }
            }
            // All of them: what a pull under way brings after the seek may be the last ones first.
            return found.size() == until - from;
        });
        return found.values();
    }

    /** What the broker holds as committed, once each queue has reached the given offset or time is up. */
    static Map<MessageQueue, Long> awaitCommitted(World world, String group, List<MessageQueue> queues, long atLeast) throws Exception {
        DefaultMQPullConsumer store = world.pull(group);
        Await.until(() -> committed(store, queues).values().stream().allMatch(offset -> offset >= atLeast));
        Map<MessageQueue, Long> committed = committed(store, queues);
        // A member of the group that stays would be given queues of it.
        store.shutdown();
        return committed;
    }

    static Map<MessageQueue, Long> committed(DefaultMQPullConsumer store, List<MessageQueue> queues) throws Exception {
        Map<MessageQueue, Long> committed = new TreeMap<>();
        for (MessageQueue queue : queues) {
            committed.put(queue, store.fetchConsumeOffset(queue, true));
        }
        return committed;
    }
}
