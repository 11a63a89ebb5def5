package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

// A queue of a consumer that crashed is locked for 60 s, and its heir asks for it every 20 s.
const heirPatience = 110 * time.Second

// What a scenario and the process that it kills have in common; their worlds have different names.
func shared(w *world, scenario, suffix string) string {
	return "go-" + w.runID + "-" + scenario + "-" + suffix
}

// victim is a process of this program that runs a scenario until it is killed; it prints what it is given.
type victim struct {
	process *exec.Cmd
	mutex   sync.Mutex
	lines   [][]string
	ended   chan struct{}
}

func (w *world) startVictim(scenario string) *victim {
	program, err := os.Executable()
	must(err, "the path of this program")
	v := &victim{process: exec.Command(program, w.namesrv, scenario, w.runID), ended: make(chan struct{})}
	output, err := v.process.StdoutPipe()
	must(err, "a pipe")
	// It ends when its standard input does: so it does not outlive this process.
	_, err = v.process.StdinPipe()
	must(err, "a pipe")
	must(v.process.Start(), "the process to be killed starts")
	w.closers = append(w.closers, v.kill)
	go func() {
		defer close(v.ended)
		lines := bufio.NewScanner(output)
		for lines.Scan() {
			if words := strings.Fields(lines.Text()); words[0] == "GIVEN" {
				v.mutex.Lock()
				v.lines = append(v.lines, words[1:])
				v.mutex.Unlock()
			}
		}
	}()
	return v
}

// kill ends the process, as a crash does, and waits until all that it printed is read.
func (v *victim) kill() {
	_ = v.process.Process.Kill()
	<-v.ended
	_ = v.process.Wait()
}

// given tells what it was given: key, queue and offset of each message.
func (v *victim) given() [][]string {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	return slices.Clone(v.lines)
}

// lacks gives those of the keys that it was not given.
func (v *victim) lacks(keys []string) []string {
	given := v.given()
	return slices.DeleteFunc(slices.Clone(keys), func(k string) bool {
		return slices.ContainsFunc(given, func(words []string) bool { return words[0] == k })
	})
}

// tell is how a victim prints.
func tell(batch []*primitive.MessageExt) {
	for _, m := range batch {
		fmt.Println("GIVEN", key(&m.Message), queueName(m.Queue), m.QueueOffset)
	}
}

// untilKilled waits for the end of whoever started this process.
func untilKilled() { _, _ = os.Stdin.Read(make([]byte, 1)) }

// A member of a group is killed: its queues go to the other one, with what it had begun.
func rebalanceCrash(w *world) {
	topic, group := w.name("t"), w.name("g")
	queues := w.createTopic(topic, 4)
	in := &inbox{}
	w.pushInto(in, group, topic, "*")
	v := w.startVictim("concurrent_victim")
	var keys []string
	// Sends a message to each queue until these many of a round come here.
	reaches := func(wanted int) bool {
		return until(func() bool {
			round := w.sendTo(queues, "T", fmt.Sprintf("round-%d-", len(keys)), len(queues))
			keys = append(keys, round...)
			until(func() bool { return len(in.lacks(round))+len(v.lacks(round)) <= len(round) })
			return len(round)-len(in.lacks(round)) == wanted
		})
	}
	w.check("each_gets_half", reaches(len(queues)/2), in.counts())
	open := w.sendTo(queues, "T", "open-", len(queues))
	w.check("each_begins_half", until(func() bool {
		return len(in.lacks(open)) == len(open)/2 && len(v.lacks(open)) == len(open)/2
	}), v.given())
	v.kill()
	w.check("what_it_had_begun_comes_again", in.await(open), in.lacks(open))
	w.check("alone_again_gets_all", reaches(len(queues)), in.counts())
	lost := slices.DeleteFunc(in.lacks(keys), func(k string) bool { return len(v.lacks([]string{k})) == 0 })
	w.check("nothing_lost", len(lost) == 0, lost)
}

// It never comes to an end with a message that is to stay open.
func concurrentVictim(w *world) {
	handle := func(_ context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		tell(batch)
		if strings.HasPrefix(key(&batch[0].Message), "open-") {
			select {}
		}
		return consumer.ConsumeSuccess, nil
	}
	w.push(shared(w, "rebalance_crash", "g"), shared(w, "rebalance_crash", "t"), byTags("*"), handle)
	untilKilled()
}

// The process of an orderly consumer is killed: its heir goes on without a gap when the locks have ended.
func orderlyCrash(w *world) {
	topic, group := w.name("t"), w.name("g")
	queues := w.createTopic(topic, 1)
	w.sendTo(queues, "T", "before-", 40)
	v := w.startVictim("orderly_victim")
	w.check("victim_had_begun", until(func() bool { return len(v.given()) >= 20 }), v.given())
	v.kill()
	offsets := map[string][]int64{}
	for _, words := range v.given() {
		offset, err := strconv.ParseInt(words[2], 10, 64)
		must(err, "an offset")
		offsets[words[1]] = append(offsets[words[1]], offset)
	}
	in := &inbox{}
	w.pushInto(in, group, topic, "*", consumer.WithConsumerOrder(true))
	last := w.sendFence(queues, "T", "end")
	w.check("heir_reaches_the_ends", within(heirPatience, func() bool { return len(in.lacks(last)) == 0 }), in.lacks(last))
	for queue, given := range in.offsets() {
		offsets[queue] = append(offsets[queue], given...)
	}
	w.check("no_gap_between_victim_and_heir", gaps(offsets) == "", gaps(offsets))
}

func orderlyVictim(w *world) {
	handle := func(_ context.Context, batch ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		tell(batch)
		return consumer.ConsumeSuccess, nil
	}
	w.push(shared(w, "orderly_crash", "g"), shared(w, "orderly_crash", "t"), byTags("*"), handle, consumer.WithConsumerOrder(true))
	untilKilled()
}

// The broker is killed and started again under an orderly consumer: no gap in any queue, and one message at a time.
func orderlyRestart(w *world) {
	command := os.Getenv("INTEROP_RESTART")
	if command == "" {
		panic("no command was given that restarts the broker (--restart)")
	}
	topic := w.name("t")
	queues := w.createTopic(topic, 2)
	in := &orderlyInbox{}
	w.push(w.name("g"), topic, byTags("*"), in.take, consumer.WithConsumerOrder(true))
	acknowledged := w.sendTo(queues, "T", "before-", 40)
	in.await(acknowledged)
	sender := w.producer()
	// What fails may be there or not.
	send := func(k string, queue *primitive.MessageQueue) bool {
		m := message(topic, "T", k)
		m.Queue = queue
		sent, err := sender.SendSync(context.Background(), m)
		if err != nil || sent.Status != primitive.SendOK {
			return false
		}
		acknowledged = append(acknowledged, k)
		return true
	}
	restarted := make(chan error, 1)
	go func() { restarted <- exec.Command("/bin/sh", "-c", command).Run() }()
	var outcome error
	for number, isBack := 0, false; !isBack; number++ {
		send(fmt.Sprintf("while-%d", number), queues[number%len(queues)])
		select {
		case outcome = <-restarted:
			isBack = true
		default:
		}
	}
	w.check("restarted", outcome == nil, outcome)
	for i, queue := range queues {
		until(func() bool { return send(fmt.Sprintf("end-%d", i), queue) })
	}
	w.check("all_acknowledged_arrive", in.await(acknowledged), in.lacks(acknowledged))
	w.close()
	w.check("one_at_a_time_per_queue", in.overlaps.Load() == 0, in.overlaps.Load())
	w.check("no_gap_in_any_queue", gaps(in.offsets()) == "", gaps(in.offsets()))
}

// gaps names places where a queue goes on neither with the next offset nor with one that came before.
func gaps(offsets map[string][]int64) string {
	text := ""
	for queue, given := range offsets {
		last := int64(-1)
		for _, offset := range given {
			if offset > last+1 {
				text += fmt.Sprintf("%s: %d after %d; ", queue, offset, last)
			}
			last = offset
		}
	}
	return text
}
