//! The event queue against a sorted list, on random sequences of operations.

use proptest::prelude::*;
use psim_hardware::Time;
use psim_sim::engine::{Engine, EventKey};

#[derive(Debug, Clone, Copy)]
enum Operation {
    Schedule(u64),
    Cancel(usize),
    Next,
    Peek,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (0..50_u64).prop_map(Operation::Schedule),
        1 => any::<usize>().prop_map(Operation::Cancel),
        3 => Just(Operation::Next),
        1 => Just(Operation::Peek),
    ]
}

proptest! {
    #[test]
    fn the_engine_does_what_a_sorted_list_does(operations in prop::collection::vec(operation(), 0..400)) {
        let mut engine = Engine::new();
        let mut list: Vec<(u64, u32)> = Vec::new();
        let mut keys: Vec<(EventKey, u32)> = Vec::new();
        let mut count = 0_u32;
        for operation in operations {
            match operation {
                Operation::Schedule(delay) => {
                    let at = engine.now() + Time(delay);
                    keys.push((engine.schedule(at, count).unwrap(), count));
                    list.push((at.0, count));
                    count += 1;
                }
                Operation::Cancel(which) if !keys.is_empty() => {
                    let (key, event) = keys[which % keys.len()];
                    let position = list.iter().position(|&(_, e)| e == event);
                    prop_assert_eq!(engine.cancel(key), position.map(|i| list.remove(i).1));
                }
                Operation::Cancel(_) => {}
                Operation::Next => {
                    let first = list.iter().copied().min();
                    list.retain(|entry| Some(*entry) != first);
                    prop_assert_eq!(engine.next(), first.map(|(t, e)| (Time(t), e)));
                }
                Operation::Peek => prop_assert_eq!(engine.peek(), list.iter().map(|e| Time(e.0)).min()),
            }
            prop_assert_eq!(engine.pending(), list.len());
        }
    }
}
