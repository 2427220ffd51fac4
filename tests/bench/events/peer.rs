//! The least that can stand between RabbitMQ and a collector, for `tests/bench/events/broker`: takes messages, sends one and the
//! same request for each, acks what was answered. It reads no event, checks, remembers and batches nothing: what it reaches is
//! what broker, collector and machine leave to a relay.
//!
//! `--amqp URI --events N --bytes N --collector ADDRESS --body FILE --in-flight N`: first it fills a quorum queue of its own.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, HashMap};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, BasicProperties, Channel, Connection, ConnectionProperties};

const QUEUE: &str = "bench.peer";
/// Of one connection, as `relay.streams_per_connection`.
const STREAMS: usize = 100;
/// How many messages wait for their confirms at once.
const CONFIRMS: usize = 1_000;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let options: HashMap<&str, &str> =
        arguments.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    // Without any it was only tried whether it runs.
    let Some(amqp) = options.get("--amqp") else { return };
    let number = |name: &str| options[name].parse::<usize>().unwrap();
    let (events, in_flight) = (number("--events"), number("--in-flight"));
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await.unwrap();
    fill(&connection, events, number("--bytes")).await;
    let body = std::fs::read_to_string(options["--body"]).unwrap();
    let collector = options["--collector"];
    let mut lines = Vec::new();
    for _ in 0..in_flight.div_ceil(STREAMS) {
        let stream = tokio::net::TcpStream::connect(collector).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (line, driver) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(driver);
        lines.push(line);
    }
    let url = format!("http://{collector}/mp/collect?measurement_id=G-BENCH&api_secret=secret");
    relay(&connection, &lines, &url, &body, events, in_flight).await;
    // Whoever measures reads the end from the collector, and then ends this.
    std::future::pending::<()>().await;
}

async fn fill(connection: &Connection, events: usize, bytes: usize) {
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), durable, quorum).await.unwrap();
    let message = vec![b'x'; bytes];
    let publish = |_| async {
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let confirm = channel.basic_publish("".into(), QUEUE.into(), options, &message, persistent).await;
        confirm.unwrap().await.unwrap();
    };
    futures_util::stream::iter(0..events).map(publish).buffer_unordered(CONFIRMS).collect::<Vec<_>>().await;
}

async fn relay(
    connection: &Connection,
    lines: &[SendRequest<String>],
    url: &str,
    body: &str,
    events: usize,
    in_flight: usize,
) {
    let channel: Channel = connection.create_channel().await.unwrap();
    let prefetch = u16::try_from(in_flight * 8).unwrap_or(u16::MAX);
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
    let consume = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(QUEUE.into(), "".into(), consume, FieldTable::default()).await.unwrap();
    let mut under_way = FuturesUnordered::new();
    // Whether what came is answered, until everything before it is.
    let mut open: BTreeMap<u64, (Acker, bool)> = BTreeMap::new();
    let (mut taken, mut acked) = (0, 0);
    while acked < events {
        tokio::select! {
            Some(delivery) = consumer.next(), if under_way.len() < in_flight && taken < events => {
                let Delivery { delivery_tag, acker, .. } = delivery.unwrap();
                open.insert(delivery_tag, (acker, false));
                let mut line = lines[taken % lines.len()].clone();
                let request = Request::post(url).header("content-type", "application/json");
                let request = request.body(body.to_owned()).unwrap();
                under_way.push(async move {
                    assert!(line.send_request(request).await.unwrap().status().is_success());
                    delivery_tag
                });
                taken += 1;
            }
            Some(first) = under_way.next() => {
                let mut next = Some(first);
                while let Some(tag) = next {
                    open.get_mut(&tag).unwrap().1 = true;
                    next = under_way.next().now_or_never().flatten();
                }
                let later = open.iter().find(|(_, (_, answered))| !answered).map(|(tag, _)| *tag);
                let rest = later.map(|later| open.split_off(&later)).unwrap_or_default();
                let answered = std::mem::replace(&mut open, rest);
                acked += answered.len();
                if let Some((_, (acker, _))) = answered.into_iter().next_back() {
                    acker.ack(BasicAckOptions { multiple: true }).await.unwrap();
                }
            }
        }
    }
}
