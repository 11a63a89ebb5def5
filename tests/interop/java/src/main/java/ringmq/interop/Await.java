package ringmq.interop;

import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;

/** Bounded waits for conditions that nothing announces. */
final class Await {
    /** Long enough for a loaded machine, shorter than the watchdog: a wait that runs out is a failed check. */
    static final long SECONDS = 45;

    interface Condition {
        boolean holds() throws Exception;
    }

    private Await() {
    }

    /** Asks again until the condition holds or time is up. A condition that throws does not hold yet. */
    static boolean until(Condition condition) {
        return until(SECONDS, condition);
    }

    /** The same, for what takes longer by its nature. */
    static boolean until(long seconds, Condition condition) {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        while (true) {
            try {
                if (condition.holds()) {
                    return true;
                }
            } catch (Exception notYet) {
                if (System.nanoTime() > deadline) {
                    throw new IllegalStateException("still failing after " + seconds + " s: " + notYet, notYet);
                }
            }
            if (System.nanoTime() > deadline) {
                return false;
            }
            LockSupport.parkNanos(TimeUnit.MILLISECONDS.toNanos(20));
        }
    }
}
