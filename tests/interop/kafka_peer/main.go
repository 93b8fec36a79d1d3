// A peer that speaks Kafka as cn-infra's msgsync and messaging do: sarama, one message per put, the key as it is, the
// value in protojson, the partition by a hash of the key.
//
// peer put ADDRESS TOPIC: reads {"key": …, "value": …} lines, a value of null for a tombstone, and prints the place.
// peer watch ADDRESS TOPIC COUNT: prints COUNT messages of all partitions, from the oldest on.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/IBM/sarama"
)

type line struct {
	Key       string          `json:"key"`
	Value     json.RawMessage `json:"value"`
	Partition int32           `json:"partition"`
	Offset    int64           `json:"offset"`
}

func main() {
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Return.Successes = true
	config.Producer.Partitioner = sarama.NewHashPartitioner
	address, topic := os.Args[2], os.Args[3]
	if os.Args[1] == "put" {
		put(config, address, topic)
	} else {
		count, err := strconv.Atoi(os.Args[4])
		check(err)
		watch(config, address, topic, count)
	}
}

func put(config *sarama.Config, address, topic string) {
	producer, err := sarama.NewSyncProducer([]string{address}, config)
	check(err)
	defer producer.Close()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var one line
		check(json.Unmarshal(lines.Bytes(), &one))
		message := &sarama.ProducerMessage{Topic: topic, Key: sarama.StringEncoder(one.Key)}
		if string(one.Value) != "null" {
			message.Value = sarama.ByteEncoder(one.Value)
		}
		one.Partition, one.Offset, err = producer.SendMessage(message)
		check(err)
		say(one)
	}
}

func watch(config *sarama.Config, address, topic string, count int) {
	consumer, err := sarama.NewConsumer([]string{address}, config)
	check(err)
	partitions, err := consumer.Partitions(topic)
	check(err)
	messages := make(chan *sarama.ConsumerMessage)
	for _, partition := range partitions {
		one, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		check(err)
		go func() {
			for message := range one.Messages() {
				messages <- message
			}
		}()
	}
	for ; count > 0; count-- {
		message := <-messages
		value := json.RawMessage(message.Value)
		if message.Value == nil {
			value = json.RawMessage("null")
		}
		say(line{string(message.Key), value, message.Partition, message.Offset})
	}
}

func say(one line) {
	text, err := json.Marshal(one)
	check(err)
	fmt.Println(string(text))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
