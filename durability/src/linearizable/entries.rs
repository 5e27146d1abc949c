//! Calls and returns of answered operations in the order of time, as a linked
//! list from which operations are taken, and put back in the opposite order.

use super::Call;

/// A call or a return, by its place in the order of time.
pub(super) type Place = usize;

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// An operation begins.
    Call(usize),
    /// An operation has ended.
    Return(usize),
}

/// The list. Operations are numbered as the calls that it was made of.
#[derive(Debug)]
pub(super) struct Entries {
    entries: Vec<Entry>,
    /// Of each place, when it was.
    times: Vec<u64>,
    /// How many calls are before each place.
    calls_before: Vec<usize>,
    /// Neighbours of each place, and of the end, which is the list's head too.
    next: Vec<Place>,
    previous: Vec<Place>,
    /// Of each operation, its places.
    call: Vec<Place>,
    answer: Vec<Place>,
}

impl Entries {
    pub(super) fn new<S>(calls: &[Call<S>]) -> Entries {
        let mut sorted: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * calls.len());
        for (number, call) in calls.iter().enumerate() {
            if let Some(answered_us) = call.answered_us {
                sorted.push((call.called_us, false, number));
                // An answer before its call is for others to complain about.
                sorted.push((answered_us.max(call.called_us), true, number));
            }
        }
        // Calls before returns of the same time.
        sorted.sort_unstable();
        let end = sorted.len();
        let mut list = Entries {
            entries: Vec::with_capacity(end),
            times: Vec::with_capacity(end),
            calls_before: Vec::with_capacity(end),
            next: (0..=end).map(|place| (place + 1) % (end + 1)).collect(),
            previous: (0..=end).map(|place| (place + end) % (end + 1)).collect(),
            call: vec![end; calls.len()],
            answer: vec![end; calls.len()],
        };
        let mut begun = 0;
        for (place, (time, is_return, number)) in sorted.into_iter().enumerate() {
            list.times.push(time);
            list.calls_before.push(begun);
            if is_return {
                list.answer[number] = place;
                list.entries.push(Entry::Return(number));
            } else {
                begun += 1;
                list.call[number] = place;
                list.entries.push(Entry::Call(number));
            }
        }
        list
    }

    /// The end of the list: no place of its own.
    fn end(&self) -> Place {
        self.entries.len()
    }

    /// The first place, if the list is not empty.
    pub(super) fn first(&self) -> Option<Place> {
        let first = self.next[self.end()];
        (first != self.end()).then_some(first)
    }

    /// The place after one; an operation's return is after its call, so every call has one.
    pub(super) fn after(&self, place: Place) -> Place {
        self.next[place]
    }

    pub(super) fn entry(&self, place: Place) -> Entry {
        self.entries[place]
    }

    /// When it was.
    pub(super) fn time(&self, place: Place) -> u64 {
        self.times[place]
    }

    /// How many operations were called before a place, whether they are in the list or not.
    pub(super) fn calls_before(&self, place: Place) -> usize {
        self.calls_before[place]
    }

    /// Where an operation is called.
    pub(super) fn call(&self, operation: usize) -> Place {
        self.call[operation]
    }

    /// The first return that is in the list.
    pub(super) fn first_return(&self) -> Option<Place> {
        let mut place = self.first()?;
        while matches!(self.entries[place], Entry::Call(_)) {
            place = self.next[place];
        }
        Some(place)
    }

    /// Takes an operation out.
    pub(super) fn take(&mut self, operation: usize) {
        for place in [self.call[operation], self.answer[operation]] {
            let (previous, next) = (self.previous[place], self.next[place]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
    }

    /// Puts back the operation that was taken out last.
    pub(super) fn put_back(&mut self, operation: usize) {
        for place in [self.answer[operation], self.call[operation]] {
            let (previous, next) = (self.previous[place], self.next[place]);
            self.next[previous] = place;
            self.previous[next] = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(list: &Entries) -> Vec<Entry> {
        let mut order = Vec::new();
        let mut place = list.first();
        while let Some(at) = place {
            order.push(list.entry(at));
            place = Some(list.after(at)).filter(|next| *next != list.end());
        }
        order
    }

    #[test]
    fn what_is_taken_out_comes_back_to_its_place() {
        let call = |called_us, answered_us| Call {
            called_us,
            answered_us,
            step: (),
        };
        let calls = [
            call(5, Some(9)),
            call(0, Some(5)),
            call(1, None),
            call(6, Some(7)),
        ];
        let mut list = Entries::new(&calls);
        let all = [
            Entry::Call(1),
            Entry::Call(0),
            Entry::Return(1),
            Entry::Call(3),
            Entry::Return(3),
            Entry::Return(0),
        ];
        assert_eq!(order(&list), all);
        assert_eq!(list.first_return(), Some(2));
        for taken in [[1, 3, 0], [0, 1, 3], [3, 0, 1]] {
            for operation in taken {
                list.take(operation);
            }
            assert_eq!((list.first(), list.first_return()), (None, None));
            for operation in taken.into_iter().rev() {
                list.put_back(operation);
            }
            assert_eq!(order(&list), all);
        }
        list.take(1);
        assert_eq!(list.first_return(), Some(4));
        assert_eq!((list.time(4), list.calls_before(4)), (7, 3));
    }
}
