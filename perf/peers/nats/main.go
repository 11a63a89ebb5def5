// The published NATS client against JetStream: every connection has a stream of its own, --in-flight messages published and not
// yet acknowledged at a time, or fetches --batch messages at a time, again from the beginning where the stream ends. What is answered
// between warm-up and end counts. Prints the fields of the summary of ringmq-perf --json that are compared, and what was
// acknowledged and stored in the whole run, warm-up included. Latency is that of a message, of a fetch when consuming.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/bits"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	streams      = 8
	answerWithin = 20 * time.Second
)

var (
	servers     = flag.String("servers", "", "HOST:PORT")
	topic       = flag.String("topic", "", "prefix of the streams")
	size        = flag.Int("size", 1024, "bytes of a message")
	batch       = flag.Int("batch", 1, "messages of a fetch")
	connections = flag.Int("connections", 1, "")
	inFlight    = flag.Int("in-flight", 1, "messages unanswered at a time on a connection")
	warmup      = flag.Float64("warmup", 2, "seconds")
	seconds     = flag.Float64("seconds", 10, "")
	count       = flag.Int64("count", 0, "messages, instead of a time")
	brokerPid   = flag.String("broker-pid", "self", "")

	measuring, over        atomic.Bool
	measured, acknowledged atomic.Int64
	budget                 atomic.Int64

	problems      = map[string]int64{}
	firstProblems = map[string]string{}
	problemsLock  sync.Mutex
)

func problem(kind string, err error) {
	problemsLock.Lock()
	defer problemsLock.Unlock()
	problems[kind]++
	if _, known := firstProblems[kind]; !known {
		firstProblems[kind] = err.Error()
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Counts by latency, exact to a hundredth.
type latencies [64 << 7]int64

func (l *latencies) add(d time.Duration) {
	shift := max(0, 56-bits.LeadingZeros64(uint64(d)))
	l[shift<<7+int(uint64(d)>>shift)]++
}

func (l *latencies) summary() map[string]float64 {
	var total int64
	for _, n := range l {
		total += n
	}
	if total == 0 {
		return nil
	}
	at := func(quantile float64) float64 {
		below := int64(math.Ceil(float64(total) * quantile))
		for index, n := range l {
			if below -= n; below <= 0 {
				shift := max(0, index>>7-1)
				return float64((index-shift<<7)<<shift) / 1e3
			}
		}
		return math.NaN()
	}
	return map[string]float64{"p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999), "max": at(1)}
}

// One request was answered.
func (l *latencies) answered(begin time.Time, messages int) {
	acknowledged.Add(int64(messages))
	if measuring.Load() && messages > 0 {
		measured.Add(int64(messages))
		l.add(time.Since(begin))
	}
}

type published struct {
	begin  time.Time
	future jetstream.PubAckFuture
}

func produce(js jetstream.JetStream, subject string, body []byte, seen *latencies) {
	if *inFlight == 1 {
		for !over.Load() && budget.Add(-1) >= 0 {
			begin := time.Now()
			if _, err := js.Publish(context.Background(), subject, body); err != nil {
				problem("publish", err)
				continue
			}
			seen.answered(begin, 1)
		}
		return
	}
	// The one that is waited for is in flight as well.
	waiting := make(chan published, *inFlight-1)
	var collector sync.WaitGroup
	collector.Go(func() {
		for one := range waiting {
			select {
			case <-one.future.Ok():
				seen.answered(one.begin, 1)
			case err := <-one.future.Err():
				problem("publish", err)
			}
		}
	})
	for !over.Load() && budget.Add(-1) >= 0 {
		begin := time.Now()
		future, err := js.PublishAsync(subject, body)
		if err != nil {
			problem("publish", err)
			continue
		}
		waiting <- published{begin, future}
	}
	close(waiting)
	collector.Wait()
}

func consume(js jetstream.JetStream, stream string, seen *latencies) {
	ctx := context.Background()
	config := jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true}
	for !over.Load() {
		consumer, err := js.CreateConsumer(ctx, stream, config)
		check(err)
		for left := consumer.CachedInfo().NumPending; left > 0 && !over.Load(); {
			begin := time.Now()
			fetched, err := consumer.Fetch(min(*batch, int(left)), jetstream.FetchMaxWait(5*time.Second))
			if err != nil {
				problem("fetch", err)
				continue
			}
			messages := 0
			for range fetched.Messages() {
				messages++
			}
			if fetched.Error() != nil {
				problem("fetch", fetched.Error())
			}
			left -= uint64(messages)
			seen.answered(begin, messages)
		}
		check(js.DeleteConsumer(ctx, stream, consumer.CachedInfo().Name))
	}
}

// CPU of a process with all its threads, and the peak of its memory.
type usage struct {
	UserUs   int64 `json:"user_us"`
	SystemUs int64 `json:"system_us"`
	Peak     int64 `json:"peak_rss_bytes"`
}

func usageOf(pid string) usage {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	check(err)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	check(err)
	// Behind the name, which may have any character: field 3 and on. Ticks are 10 ms wherever this runs.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	number := func(text string) int64 {
		value, err := strconv.ParseInt(text, 10, 64)
		check(err)
		return value
	}
	used := usage{UserUs: number(fields[11]) * 10_000, SystemUs: number(fields[12]) * 10_000}
	for line := range strings.Lines(string(status)) {
		if peak, found := strings.CutPrefix(line, "VmHWM:"); found {
			used.Peak = number(strings.Fields(peak)[0]) * 1024
		}
	}
	return used
}

func (begin usage) until(end usage) usage {
	return usage{end.UserUs - begin.UserUs, end.SystemUs - begin.SystemUs, end.Peak}
}

func stored(js jetstream.JetStream) (messages int64) {
	for number := range streams {
		stream, err := js.Stream(context.Background(), fmt.Sprint(*topic, "-", number))
		check(err)
		messages += int64(stream.CachedInfo().State.Msgs)
	}
	return messages
}

func main() {
	if len(os.Args) < 2 || os.Args[1] != "produce" && os.Args[1] != "consume" {
		check(errors.New("produce or consume?"))
	}
	isProduce := os.Args[1] == "produce"
	check(flag.CommandLine.Parse(os.Args[2:]))
	if budget.Store(math.MaxInt64 / 2); *count > 0 {
		budget.Store(*count)
	}
	body := make([]byte, *size)
	rand.New(rand.NewSource(1)).Read(body)

	var all []jetstream.JetStream
	for range max(*connections, 1) {
		connection, err := nats.Connect("nats://" + *servers)
		check(err)
		js, err := jetstream.New(connection, jetstream.WithPublishAsyncMaxPending(*inFlight+1), jetstream.WithPublishAsyncTimeout(answerWithin))
		check(err)
		all = append(all, js)
	}
	for number := range streams {
		name := fmt.Sprint(*topic, "-", number)
		_, err := all[0].CreateStream(context.Background(), jetstream.StreamConfig{Name: name, Subjects: []string{name}})
		check(err)
	}
	before := stored(all[0])

	seen := make([]latencies, len(all))
	var workers sync.WaitGroup
	for number, js := range all {
		stream := fmt.Sprint(*topic, "-", number%streams)
		workers.Go(func() {
			if isProduce {
				produce(js, stream, body, &seen[number])
			} else {
				consume(js, stream, &seen[number])
			}
		})
	}
	if *count == 0 {
		time.Sleep(time.Duration(*warmup * 1e9))
	}
	broker, generator, begin := usageOf(*brokerPid), usageOf("self"), time.Now()
	measuring.Store(true)
	if *count == 0 {
		time.Sleep(time.Duration(*seconds * 1e9))
	} else {
		workers.Wait()
	}
	measuring.Store(false)
	elapsed := time.Since(begin).Seconds()
	broker, generator = broker.until(usageOf(*brokerPid)), generator.until(usageOf("self"))
	over.Store(true)
	workers.Wait()

	var sum latencies
	for number := range seen {
		for index, n := range seen[number] {
			sum[index] += n
		}
	}
	summary := map[string]any{
		"seconds": elapsed, "messages": measured.Load(), "messages_per_second": float64(measured.Load()) / elapsed,
		"acknowledged": acknowledged.Load(), "stored": nil, "errors": problems, "first_errors": firstProblems, "latency_us": sum.summary(),
		"brokers": []usage{broker}, "generator": generator,
	}
	if isProduce {
		summary["stored"] = stored(all[0]) - before
	}
	check(json.NewEncoder(os.Stdout).Encode(summary))
}
