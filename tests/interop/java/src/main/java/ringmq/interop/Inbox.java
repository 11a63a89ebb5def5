package ringmq.interop;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What a consumer was given, in the order in which it was given. Messages are told apart by their KEYS. */
final class Inbox {
    private final List<MessageExt> messages = new ArrayList<>();

    synchronized void add(Collection<MessageExt> batch) {
        messages.addAll(batch);
        notifyAll();
    }

    synchronized List<MessageExt> all() {
        return new ArrayList<>(messages);
    }

    /** Waits until every key has arrived at least once; false when time runs out first. */
    boolean awaitKeys(Collection<String> keys) throws InterruptedException {
        return await(inbox -> inbox.counts().keySet().containsAll(keys));
    }

    synchronized boolean await(Predicate<Inbox> condition) throws InterruptedException {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(Await.SECONDS);
        while (!condition.test(this)) {
            long left = TimeUnit.NANOSECONDS.toMillis(deadline - System.nanoTime());
            if (left <= 0) {
                return false;
            }
            wait(left);
        }
        return true;
    }

    /** How often each key arrived. */
    synchronized Map<String, Integer> counts() {
        Map<String, Integer> counts = new TreeMap<>();
        for (MessageExt message : messages) {
            counts.merge(message.getKeys(), 1, Integer::sum);
        }
        return counts;
    }

    synchronized Map<String, MessageExt> byKey() {
        Map<String, MessageExt> byKey = new LinkedHashMap<>();
        for (MessageExt message : messages) {
            byKey.putIfAbsent(message.getKeys(), message);
        }
        return byKey;
    }

    /** Queue offsets in the order of arrival, for each queue. */
    synchronized Map<MessageQueue, List<Long>> offsets() {
        Map<MessageQueue, List<Long>> offsets = new TreeMap<>();
        for (MessageExt message : messages) {
            offsets.computeIfAbsent(World.queueOf(message), queue -> new ArrayList<>()).add(message.getQueueOffset());
        }
        return offsets;
    }

    /** Missing, repeated and unexpected keys in words; empty when each expected key arrived exactly once. */
    String differenceFrom(Collection<String> expected) {
        Map<String, Integer> counts = counts();
        TreeSet<String> missing = new TreeSet<>(expected);
        missing.removeAll(counts.keySet());
        TreeSet<String> unexpected = new TreeSet<>(counts.keySet());
        unexpected.removeAll(expected);
        Map<String, Integer> repeated = new TreeMap<>(counts);
        repeated.values().removeIf(count -> count == 1);
        String text = "";
        if (!missing.isEmpty()) {
            text += missing.size() + " missing " + missing + " ";
        }
        if (!repeated.isEmpty()) {
            text += repeated.size() + " repeated " + repeated + " ";
        }
        if (!unexpected.isEmpty()) {
            text += unexpected.size() + " unexpected " + unexpected;
        }
        return text.strip();
    }
}
