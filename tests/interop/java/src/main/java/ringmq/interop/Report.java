package ringmq.interop;

import java.io.PrintStream;
import java.util.Arrays;
import java.util.Objects;

/** Counts checks and prints one line for each. Safe to use from client threads. */
final class Report {
    private final PrintStream out;
    private int passed;
    private int failed;

    Report(PrintStream out) {
        this.out = out;
    }

    synchronized void pass(String name) {
        passed++;
        out.println("PASS " + name);
    }

    synchronized void fail(String name, String why) {
        failed++;
        out.println("FAIL " + name + ": " + why.replace('\n', ' '));
    }

    /** A line for the process that has started this one. */
    synchronized void tell(String line) {
        out.println(line);
    }

    /** A line for the reader of the output; counted neither way. */
    synchronized void note(String text) {
        out.println("# " + text);
    }

    void check(String name, boolean holds, String why) {
        if (holds) {
            pass(name);
        } else {
            fail(name, why);
        }
    }

    void equal(String name, Object expected, Object actual) {
        check(name, Objects.equals(expected, actual), "expected " + brief(expected) + ", got " + brief(actual));
    }

    void equal(String name, byte[] expected, byte[] actual) {
        int at = actual == null ? 0 : Arrays.mismatch(expected, actual);
        check(name, at < 0, "expected " + expected.length + " bytes, got "
            + (actual == null ? "none" : actual.length + ", first difference at " + at));
    }

    synchronized boolean summary() {
        out.println(passed + " passed, " + failed + " failed");
        out.flush();
        return failed == 0;
    }

    private static String brief(Object value) {
        String text = String.valueOf(value);
        return text.length() <= 400 ? text : text.substring(0, 400) + "… (" + text.length() + " characters)";
    }
}
