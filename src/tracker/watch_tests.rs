//! Tests of what is seen over time: by hand, and against a model that remembers everything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::tracker::rules::CATALOGUE;

const START_MS: u64 = 1_795_453_080_000;
const ALL: u64 = u64::MAX;

fn ms(at: u64) -> Timestamp {
    Timestamp::from_millis(START_MS + at)
}

fn message(number: u32) -> MessageId {
    MessageId::new(ms(0), number)
}

fn recipient(number: u8) -> Option<Pseudonym> {
    Some(Pseudonym::from([number; 12]))
}

fn click(number: u64, at: u64, link: u16) -> Hit {
    Hit {
        id: EventId::of("test").part(number.to_be_bytes()).finish(),
        time: ms(at),
        scope: Scope::Click,
        message: message(1),
        recipient: recipient(1),
        link: Some(link),
        network: 1,
        client: 1,
        agent: 1,
        is_client_named: true,
        is_head: false,
        machine: Machine::No,
        waiting: ALL,
    }
}

fn watch(rules: &str) -> Watch {
    let rules = Rules::parse(&format!("version = 2\n{rules}")).unwrap();
    Watch::new(&rules, Duration::from_secs(3_600), Limits::default())
}

fn rule(name: &str, scope: &str, certainty: &str, rest: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\nscope = \"{scope}\"\ncertainty = \"{certainty}\"\n{rest}\n")
}

/// Feeds hits in their order; gives the last word on each.
fn last_words(watch: &mut Watch, facts: Vec<Fact>) -> HashMap<EventId, (Machine, Option<String>)> {
    let mut words = HashMap::new();
    for fact in facts {
        let now = match &fact {
            Fact::Hit(hit) => {
                words.insert(hit.id, (hit.machine, None));
                hit.time
            }
            Fact::Delivered { .. } => ms(0),
        };
        for Correction { id, machine, rule } in watch.observe(fact, now) {
            words.insert(id, (machine, Some(rule.to_string())));
        }
    }
    words
}

fn bursts() -> String {
    rule("few", "click", "probable", "burst_links = 3\nin_ms = 10000")
        + &rule("many", "click", "certain", "burst_links = 5\nin_ms = 10000")
}

#[test]
fn the_rest_of_a_burst_corrects_its_beginning() {
    let mut watch = watch(&bursts());
    for (number, expected) in [(1, 0), (2, 0), (3, 3), (4, 1), (5, 5)] {
        let hit = click(number, number * 1_000, u16::try_from(number).unwrap());
        let corrections = watch.observe(Fact::Hit(hit), ms(number * 1_000));
        assert_eq!(corrections.len(), expected, "{number}: {corrections:?}");
        let machine = if number == 5 { Machine::Certain } else { Machine::Probable };
        assert!(corrections.iter().all(|correction| correction.machine == machine));
    }
}

#[test]
fn the_same_link_again_other_readers_and_slow_readers_are_no_burst() {
    let mut again = watch(&bursts());
    for number in 0..20 {
        assert!(again.observe(Fact::Hit(click(number, number, 1)), ms(number)).is_empty());
    }
    let mut others = watch(&bursts());
    let mut shared = watch(&bursts());
    for number in 0..5 {
        let link = u16::try_from(number).unwrap();
        let hit = Hit { recipient: recipient(u8::try_from(number).unwrap()), ..click(number, 0, link) };
        assert!(others.observe(Fact::Hit(hit), ms(0)).is_empty());
        let hit = Hit { recipient: None, client: number, ..click(number, 0, link) };
        assert!(shared.observe(Fact::Hit(hit), ms(0)).is_empty(), "one token, several people");
    }
    let mut slow = watch(&bursts());
    for number in 0..5 {
        let link = u16::try_from(number).unwrap();
        assert!(slow.observe(Fact::Hit(click(number, number * 5_001, link)), ms(number * 5_001)).is_empty());
    }
}

#[test]
fn a_scanner_that_is_known_does_not_make_a_machine_of_the_reader() {
    let mut watch = watch(&bursts());
    for number in 0..5 {
        let hit = Hit { machine: Machine::Certain, ..click(number, number, u16::try_from(number).unwrap()) };
        assert!(watch.observe(Fact::Hit(hit), ms(number)).is_empty());
    }
    assert!(watch.observe(Fact::Hit(click(9, 9, 1)), ms(9)).is_empty());
}

#[test]
fn a_sweep_counts_recipients_of_one_client() {
    let mut watch = watch(&rule("sweep", "click", "probable", "sweep_recipients = 3\nin_ms = 1000"));
    let hit = |number: u8, client| Hit {
        recipient: recipient(number),
        message: message(number.into()),
        client,
        ..click(number.into(), 0, 1)
    };
    for (number, client, expected) in [(1, 1, 0), (2, 2, 0), (3, 1, 0), (3, 1, 0), (4, 1, 4)] {
        let corrections = watch.observe(Fact::Hit(hit(number, client)), ms(0));
        assert_eq!(corrections.len(), expected, "{number} {client} {corrections:?}");
    }
}

#[test]
fn the_delivery_counts_whenever_it_becomes_known() {
    let rules = rule("before", "both", "certain", "before_delivery = true")
        + &rule("just", "click", "probable", "after_delivery_ms = 2000");
    let delivered = |at| Fact::Delivered { message: message(1), recipient: recipient(1), time: ms(at) };
    for (hit_at, expected) in
        [(4_999, Some("before")), (5_000, Some("just")), (6_999, Some("just")), (7_000, None)]
    {
        for delivery_first in [true, false] {
            let mut facts = vec![delivered(5_000), Fact::Hit(click(1, hit_at, 1))];
            if !delivery_first {
                facts.reverse();
            }
            // Only the first delivery counts.
            facts.push(delivered(90_000));
            let words = last_words(&mut watch(&rules), facts);
            let rule = words.values().next().unwrap().1.clone();
            assert_eq!(rule.as_deref(), expected, "{hit_at} {delivery_first}");
        }
    }
    let shared = Fact::Hit(Hit { recipient: None, ..click(1, 4_000, 1) });
    let words = last_words(&mut watch(&rules), vec![shared, delivered(5_000)]);
    assert_eq!(words.values().next().unwrap().0, Machine::Certain, "nobody had it yet");
    let unknown = last_words(&mut watch(&rules), vec![Fact::Hit(click(1, 0, 1))]);
    assert_eq!(unknown.values().next().unwrap().0, Machine::No);
}

#[test]
fn other_conditions_of_a_rule_hold_too() {
    let rules = rule("both", "click", "certain", "burst_links = 2\nin_ms = 1000\nafter_delivery_ms = 5000");
    let delivered = Fact::Delivered { message: message(1), recipient: recipient(1), time: ms(0) };
    let mut facts = vec![Fact::Hit(click(1, 10, 1)), Fact::Hit(Hit { waiting: 0, ..click(2, 20, 2) })];
    let before = last_words(&mut watch(&rules), facts.clone());
    assert!(before.values().all(|(machine, _)| *machine == Machine::No));
    facts.push(delivered);
    let after = last_words(&mut watch(&rules), facts);
    assert_eq!(after.values().filter(|(machine, _)| *machine == Machine::Certain).count(), 1);
}

#[test]
fn nothing_grows_without_bound_and_what_is_forgotten_is_counted() {
    let rules = Rules::parse(CATALOGUE).unwrap();
    let limits = Limits { hits: 100, hits_per_key: 10, deliveries: 50 };
    let mut watch = Watch::new(&rules, Duration::from_secs(30), limits);
    for number in 0..1_000_u64 {
        let sender = u8::try_from(number % 200).unwrap();
        let hit =
            Hit { recipient: recipient(sender), message: message(sender.into()), ..click(number, 0, 1) };
        watch.observe(Fact::Hit(hit), ms(0));
        let delivered =
            Fact::Delivered { message: message(sender.into()), recipient: None, time: ms(number) };
        watch.observe(delivered, ms(0));
    }
    assert_eq!(watch.hits.len(), 100);
    assert!(watch.messages.values().chain(watch.clients.values()).all(|list| list.len() <= 10));
    assert!(watch.messages.len() <= 100 && watch.clients.len() == 1);
    assert!(watch.delivered.len() <= 50 && watch.deliveries.len() <= 50);
    assert!(watch.take_forgotten() >= 900);
    assert_eq!(watch.take_forgotten(), 0);
    watch.observe(Fact::Delivered { message: message(0), recipient: None, time: ms(0) }, ms(3_600_000));
    assert!(watch.hits.is_empty() && watch.messages.is_empty() && watch.clients.is_empty());
    assert_eq!(watch.take_forgotten(), 0, "what is too old to count is not lost");
}

#[test]
fn new_rules_know_the_deliveries_and_the_hits_of_before() {
    let mut watch = watch(&bursts());
    for number in 1..=4 {
        watch.observe(Fact::Hit(click(number, 0, u16::try_from(number).unwrap())), ms(0));
    }
    let at = Fact::Delivered { message: message(1), recipient: recipient(1), time: ms(500) };
    watch.observe(at, ms(500));
    // The same rules in another order, and one more: only for what is the same are hits of before judged again.
    let just = rule("just", "click", "certain", "after_delivery_ms = 1000");
    let two = rule("two", "click", "certain", "burst_links = 2\nin_ms = 10000");
    let parse = |rules: &str| Rules::parse(&format!("version = 2\n{rules}")).unwrap();
    let mut watch = watch.with_rules(&parse(&(just.clone() + &bursts())), Duration::ZERO);
    assert_eq!(watch.observe(Fact::Hit(click(5, 600, 5)), ms(600)).len(), 5, "all five are one burst");
    let mut watch = watch.with_rules(&parse(&(just + &two)), Duration::ZERO);
    let corrections = watch.observe(Fact::Hit(Hit { waiting: 2, ..click(6, 2_000, 6) }), ms(2_000));
    assert_eq!(
        corrections.iter().map(|one| &*one.rule).collect::<Vec<_>>(),
        ["two"],
        "it counts those of before"
    );
    // Another pattern under an old name is another rule.
    let wider = bursts().replace("burst_links = 5", "burst_links = 7");
    let mut watch = watch.with_rules(&parse(&wider), Duration::ZERO);
    assert_eq!(watch.observe(Fact::Hit(click(7, 2_500, 7)), ms(2_500)).len(), 1);
}

#[test]
fn a_burst_that_was_found_out_makes_no_machine_of_the_reader_after_it() {
    let mut watch = watch(&bursts());
    let scanner = |number: u64| click(number, number * 100, u16::try_from(number).unwrap());
    let verdicts = (1..=6).map(|number| watch.observe(Fact::Hit(scanner(number)), ms(number * 100)).len());
    assert_eq!(verdicts.collect::<Vec<_>>(), [0, 0, 3, 1, 5, 1]);
    let other = |number, network, agent| Hit {
        network,
        agent,
        client: 10 * network + agent,
        ..click(number, 8_000, 1)
    };
    assert!(watch.observe(Fact::Hit(other(11, 2, 2)), ms(8_000)).is_empty(), "somebody else");
    // The same program from elsewhere, and another one from the same network, go on with the burst.
    assert_eq!(watch.observe(Fact::Hit(other(12, 3, 1)), ms(8_000)).len(), 1);
    assert_eq!(watch.observe(Fact::Hit(other(13, 1, 3)), ms(8_000)).len(), 1);
    // And so does the scanner itself, although somebody else asked for the same before it.
    assert_eq!(watch.observe(Fact::Hit(click(14, 8_100, 1)), ms(8_100)).len(), 1);
}

#[test]
fn case_62_who_asks_for_the_head_first_and_then_for_all_is_one_machine() {
    let rules = rule("head", "both", "probable", "after_head_ms = 2000");
    let head = |number, at, link| Hit { is_head: true, machine: Machine::Certain, ..click(number, at, link) };
    let mut watch = watch(&rules);
    for (number, link) in [(1, 1), (2, 2)] {
        assert!(watch.observe(Fact::Hit(head(number, number * 10, link)), ms(number * 10)).is_empty());
    }
    for (hit, expected) in [
        (click(3, 150, 1), 1),
        (click(4, 160, 2), 1),
        (click(5, 170, 3), 0),
        (Hit { client: 2, ..click(6, 180, 1) }, 0),
        (Hit { recipient: recipient(2), ..click(7, 190, 1) }, 0),
        (Hit { scope: Scope::Open, link: None, ..click(8, 200, 0) }, 0),
        (click(9, 2_009, 1), 1),
        (click(10, 2_020, 2), 0),
    ] {
        let (at, id) = (hit.time, hit.id);
        let corrections = watch.observe(Fact::Hit(hit), at);
        assert_eq!(corrections.len(), expected, "{at:?}");
        assert!(corrections.iter().all(|one| one.id == id && one.machine == Machine::Probable));
    }
}

#[test]
fn networks_are_known_by_their_prefix_and_only_within_a_process() {
    let one = std::hash::RandomState::new();
    let key = |address: &str| network_key(address.parse().unwrap(), &one);
    assert_eq!(key("192.0.2.1"), key("192.0.2.254"));
    assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.9"));
    assert_ne!(key("192.0.2.1"), key("192.0.3.1"));
    assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:ffff::2"));
    assert_ne!(key("2001:db8:1::1"), key("2001:db8:2::1"));
    let client = |agent: &[u8]| client_key("192.0.2.1".parse().unwrap(), agent, &one);
    assert_ne!(client(b"a"), client(b"b"));
    assert_ne!(key("192.0.2.1"), network_key("192.0.2.1".parse().unwrap(), &std::hash::RandomState::new()));
}

/// Hits that others had made certain before a hit came.
type Before = std::collections::BTreeSet<EventId>;

/// The verdict on a hit by looking at everything that ever happened.
fn model(
    rules: &[WatchedRule],
    hits: &[(Hit, Before)],
    of: &Hit,
    delivered: &[(MessageId, Option<Pseudonym>, Timestamp)],
) -> u8 {
    let first = |message, recipient: Option<Pseudonym>| {
        let mut of =
            delivered.iter().filter(|(m, r, _)| *m == message && (recipient.is_none() || *r == recipient));
        of.next().map(|(_, _, time)| *time)
    };
    let related = |pattern, a: &Hit, b: &Hit| match pattern {
        Pattern::Links(_) => {
            a.message == b.message
                && a.recipient == b.recipient
                && (a.recipient.is_some() || a.client == b.client)
        }
        Pattern::Networks(_) => a.message == b.message && a.recipient == b.recipient && a.recipient.is_some(),
        Pattern::Recipients(_) => a.client == b.client && a.recipient.is_some() && b.recipient.is_some(),
    };
    let likes = |last: &Hit, hit: &Hit| last.network == hit.network || last.agent == hit.agent;
    let after_head = |within: Duration| {
        let of_same = |hit: &Hit| {
            (hit.message, hit.recipient, hit.scope, hit.link, hit.client)
                == (of.message, of.recipient, of.scope, of.link, of.client)
        };
        let mut before = hits.iter().map(|(hit, _)| hit).take_while(|hit| hit.id != of.id);
        before.any(|hit| hit.is_head && of_same(hit) && of.time.since(hit.time) < within)
    };
    let mut best = rank(of.machine);
    for (bit, rule) in rules.iter().enumerate() {
        let pattern_holds = rule.watched.pattern.is_none_or(|(pattern, within)| {
            let counts = |(hit, _): &&(Hit, Before)| {
                rule.scope.covers(hit.scope)
                    && hit.machine != Machine::Certain
                    && related(pattern, hit, of)
                    && (!matches!(pattern, Pattern::Links(_)) || hit.link.is_some())
            };
            let counted: Vec<&(Hit, Before)> = hits.iter().filter(counts).collect();
            counted.iter().any(|(hit, _)| hit.id == of.id)
                && counted.iter().enumerate().any(|(at, (last, before))| {
                    let within: Vec<&Hit> = counted
                        .iter()
                        .take(at + 1)
                        .map(|(hit, _)| hit)
                        .filter(|hit| last.time.since(hit.time) <= within)
                        .filter(|hit| !before.contains(&hit.id) || likes(last, hit))
                        .collect();
                    let value = |hit: &&Hit| match pattern {
                        Pattern::Links(_) => hit.link.unwrap().into(),
                        Pattern::Networks(_) => hit.network.into(),
                        Pattern::Recipients(_) => number_of(hit.recipient.unwrap()),
                    };
                    let (Pattern::Links(least) | Pattern::Networks(least) | Pattern::Recipients(least)) =
                        pattern;
                    let are_enough = |hits: &[&Hit]| {
                        hits.iter().map(value).collect::<std::collections::BTreeSet<u128>>().len() >= least
                    };
                    let alike: Vec<&Hit> = within.iter().copied().filter(|hit| likes(last, hit)).collect();
                    let those = if are_enough(&alike) { alike } else { within };
                    are_enough(&those) && those.iter().any(|hit| hit.id == of.id)
                })
        });
        let in_time = is_in_time(rule.watched, of.time, first(of.message, of.recipient));
        let timely = in_time && rule.watched.after_head.is_none_or(after_head);
        if of.waiting & (1 << bit) != 0 && pattern_holds && timely {
            best = best.max(rank(rule.machine));
        }
    }
    best
}

fn any_hit() -> impl Strategy<Value = (bool, u32, Option<u8>, u16, u64, u64, u8, u64)> {
    (
        any::<bool>(),
        0..2_u32,
        proptest::option::of(0..4_u8),
        0..5_u16,
        0..4_u64,
        0..2_u64,
        0..8_u8,
        prop_oneof![Just(ALL), any::<u64>()],
    )
}

proptest! {
    #[test]
    fn the_last_word_on_every_hit_is_the_models(
        steps in proptest::collection::vec((0..1_500_u64, proptest::option::weighted(0.85, any_hit()), 0..4_u8), 1..40),
    ) {
        let rules = bursts()
            + &rule("nets", "both", "probable", "burst_networks = 3\nin_ms = 3000")
            + &rule("sweep", "click", "probable", "sweep_recipients = 3\nin_ms = 2000")
            + &rule("before", "both", "certain", "before_delivery = true")
            + &rule("head", "both", "certain", "after_head_ms = 2000")
            + &rule("just", "open", "probable", "after_delivery_ms = 2000")
            + &rule("mixed", "click", "certain", "burst_links = 2\nin_ms = 1000\nafter_delivery_ms = 4000");
        let mut watch = watch(&rules);
        let (mut now, mut hits, mut delivered) = (0, Vec::new(), Vec::new());
        let mut words: HashMap<EventId, u8> = HashMap::new();
        for (number, (pause, hit, other)) in steps.into_iter().enumerate() {
            now += pause;
            let fact = match hit {
                Some((is_click, mail, whose, link, network, agent, machine, waiting)) => {
                    let hit = Hit {
                        scope: if is_click { Scope::Click } else { Scope::Open },
                        message: message(mail),
                        recipient: whose.and_then(recipient),
                        link: is_click.then_some(link),
                        network,
                        agent,
                        client: network * 2 + agent,
                        is_head: machine == 7,
                        machine: [Machine::No, Machine::Probable, Machine::Certain][usize::from(machine.saturating_sub(5))],
                        waiting,
                        ..click(number as u64, now, link)
                    };
                    let made = |hit: &Hit| hit.machine != Machine::Certain && words[&hit.id] == rank(Machine::Certain);
                    let before = hits.iter().map(|(hit, _)| hit).filter(|hit| made(hit)).map(|hit| hit.id);
                    let before = before.collect();
                    words.insert(hit.id, rank(hit.machine));
                    hits.push((hit.clone(), before));
                    Fact::Hit(hit)
                }
                None => {
                    let (message, recipient) = (message(u32::from(other) % 2), recipient(other));
                    delivered.push((message, recipient, ms(now)));
                    Fact::Delivered { message, recipient, time: ms(now) }
                }
            };
            for Correction { id, machine, .. } in watch.observe(fact, ms(now)) {
                let before = words.insert(id, rank(machine)).unwrap();
                prop_assert!(before < rank(machine), "a correction makes a verdict surer");
            }
        }
        for (hit, _) in &hits {
            prop_assert_eq!(words[&hit.id], model(&watch.rules, &hits, hit, &delivered), "{:?}", hit);
        }
    }
}

#[test]
fn the_room_of_a_burst_is_given_back_when_it_is_over() {
    let rules = Rules::parse(&format!(
        "version = 2\n{}",
        rule("burst", "click", "certain", "burst_links = 5\nin_ms = 10000")
    ));
    let mut watch = Watch::new(&rules.unwrap(), Duration::from_secs(10), Limits::default());
    let hit = |number: u64, at: u64| {
        let message = message(u32::try_from(number).unwrap());
        Fact::Hit(Hit { message, client: number, ..click(number, at, 1) })
    };
    (0..20_000).for_each(|number| drop(watch.observe(hit(number, number / 100), ms(number / 100))));
    assert!(watch.hits.capacity() >= 20_000 && watch.clients.capacity() >= 20_000);
    watch.observe(hit(20_000, 60_000), ms(60_000));
    let rooms = [watch.hits.capacity(), watch.messages.capacity(), watch.clients.capacity()];
    assert!(rooms.iter().all(|room| *room <= 1_024), "{rooms:?}");
}
