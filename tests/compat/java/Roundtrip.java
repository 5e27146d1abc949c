import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** The Java client: one round trip with its default settings (idempotent producer). See ../README.md. */
public final class Roundtrip {
    private static final int RECORDS = 10_000;
    private final String bootstrap;
    private final String topic;
    private final Map<Integer, List<Integer>> seen = new TreeMap<>();
    private final Map<TopicPartition, OffsetAndMetadata> positions = new HashMap<>();

    private Roundtrip(String bootstrap, String topic) {
        this.bootstrap = bootstrap;
        this.topic = topic;
    }

    private static String key(int seq) {
        return "k" + seq % 97;
    }

    private static String value(int seq) {
        return seq + ":" + "drave ".repeat(seq * 31 % 40);
    }

    private Properties settings() {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        return settings;
    }

    private void create(int partitions) throws Exception {
        try (Admin admin = Admin.create(settings())) {
            admin.createTopics(List.of(new NewTopic(topic, Optional.of(partitions), Optional.empty()))).all().get();
        }
    }

    private void produce(String compression) throws Exception {
        Properties settings = settings();
        settings.put("compression.type", compression);
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (KafkaProducer<String, String> producer =
                new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            for (int seq = 0; seq < RECORDS; seq++) {
                sent.add(producer.send(new ProducerRecord<>(topic, key(seq), value(seq))));
            }
            producer.flush();
            for (Future<RecordMetadata> each : sent) {
                each.get();
            }
        }
    }

    /** Reads {@code wanted} records, commits exactly what was read, and leaves. */
    private void consume(int wanted) {
        Properties settings = settings();
        settings.put("group.id", "group-" + topic);
        settings.put("auto.offset.reset", "earliest");
        settings.put("enable.auto.commit", "false");
        try (KafkaConsumer<String, String> consumer =
                new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(topic));
            long deadline = System.nanoTime() + Duration.ofSeconds(60).toNanos();
            int got = 0;
            while (got < wanted) {
                require(System.nanoTime() < deadline, "only " + got + " of " + wanted + " records in 60 s");
                for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(500))) {
                    if (got < wanted) {
                        take(record);
                        got++;
                    }
                }
            }
            consumer.commitSync(positions);
        }
    }

    private void take(ConsumerRecord<String, String> record) {
        TopicPartition partition = new TopicPartition(topic, record.partition());
        OffsetAndMetadata position = positions.get(partition);
        long due = position == null ? 0 : position.offset();
        require(record.offset() == due, partition + ": offset " + record.offset() + " where " + due + " was due");
        positions.put(partition, new OffsetAndMetadata(due + 1, "read " + due));
        int seq = Integer.parseInt(record.value().substring(0, record.value().indexOf(':')));
        require(record.key().equals(key(seq)) && record.value().equals(value(seq)), "record " + seq + " came back changed");
        seen.computeIfAbsent(record.partition(), any -> new ArrayList<>()).add(seq);
    }

    private static void require(boolean holds, String otherwise) {
        if (!holds) {
            System.err.println(otherwise);
            System.exit(1);
        }
    }

    public static void main(String[] args) throws Exception {
        Roundtrip roundtrip = new Roundtrip(args[0], args[1]);
        roundtrip.create(Integer.parseInt(args[3]));
        roundtrip.produce(args[2]);
        int half = RECORDS / 2 + 123;
        roundtrip.consume(half);
        roundtrip.consume(RECORDS - half);
        List<Integer> all = new ArrayList<>();
        roundtrip.seen.forEach((partition, seqs) -> {
            require(seqs.equals(seqs.stream().sorted().toList()), "partition " + partition + " came back out of order");
            all.addAll(seqs);
        });
        all.sort(null);
        require(all.size() == RECORDS, all.size() + " records came back");
        for (int seq = 0; seq < RECORDS; seq++) {
            require(all.get(seq) == seq, "records are missing or came twice");
        }
        System.exit(0); // exiting in main: a client thread that hangs is no business of this test's
    }
}
