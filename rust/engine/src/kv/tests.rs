use pocketlm_kernels::{KvBlock, KvBlockMut};

use super::*;

const LAYERS: [CacheShape; 2] =
    [CacheShape { kv_heads: 2, head_dim: 8 }, CacheShape { kv_heads: 1, head_dim: 24 }];

fn write(cache: &KvCache, id: SequenceId, position: usize, number: f32) {
    let view = cache.view();
    let block = cache.table(id)[position / KV_TOKENS];
    for (layer, shape) in LAYERS.iter().enumerate() {
        for head in 0..shape.kv_heads {
            // SAFETY: one thread, and one head at a time: nothing else is borrowed from the cache.
            let block = unsafe { view.write(block, layer, head) };
            let (slot, dim) = (position % KV_TOKENS, shape.head_dim);
            let kv = block.dtype();
            let keys = (0..dim).map(|channel| kv.key_at(dim, slot, channel));
            match block {
                KvBlockMut::F16 { k, v } => {
                    let bits = half::f16::from_f32(number).to_bits();
                    keys.for_each(|at| k[at] = bits);
                    v[slot * dim..][..dim].fill(bits);
                }
                KvBlockMut::I8 { k, v, k_scales, v_scales } => {
                    (k_scales[slot], v_scales[slot]) = (number, number);
                    keys.for_each(|at| k[at] = 1);
                    v[slot * dim..][..dim].fill(1);
                }
            }
        }
    }
}

/// The number that `write` left at a position, checked to be the same in every place.
fn read(cache: &KvCache, id: SequenceId, position: usize) -> f32 {
    let view = cache.view();
    let block = cache.table(id)[position / KV_TOKENS];
    let slot = position % KV_TOKENS;
    let mut found = Vec::new();
    for (layer, shape) in LAYERS.iter().enumerate() {
        for head in 0..shape.kv_heads {
            // SAFETY: one thread, which writes nothing meanwhile.
            let block = unsafe { view.read(block, layer, head) };
            let dim = shape.head_dim;
            for index in 0..dim {
                let (key, value) = (block.dtype().key_at(dim, slot, index), slot * dim + index);
                found.extend(match block {
                    KvBlock::F16 { k, v } => {
                        [k[key], v[value]].map(|bits| half::f16::from_bits(bits).to_f32())
                    }
                    KvBlock::I8 { k, v, k_scales, v_scales } => {
                        [f32::from(k[key]) * k_scales[slot], f32::from(v[value]) * v_scales[slot]]
                    }
                });
            }
        }
    }
    assert!(found.iter().all(|number| *number == found[0]), "{found:?}");
    found[0]
}

#[test]
fn forks_share_until_written() {
    KvType::ALL.into_iter().for_each(forks);
}

fn forks(kv: KvType) {
    let mut cache = KvCache::new(&LAYERS, kv, 4 * 64, 1000).unwrap();
    let first = cache.create();
    cache.extend(&[(first, 70)]).unwrap();
    (0..70).for_each(|position| write(&cache, first, position, position as f32));
    let second = cache.fork(first);
    assert_eq!(cache.free_tokens(), 2 * 64);
    // Both write token 70: one copies the partial block, the other keeps it.
    cache.extend(&[(first, 1), (second, 1)]).unwrap();
    assert_eq!(cache.free_tokens(), 64);
    write(&cache, first, 70, 1000.0);
    write(&cache, second, 70, 2000.0);
    assert_eq!(cache.table(first)[0], cache.table(second)[0]);
    assert_eq!((read(&cache, first, 70), read(&cache, second, 70)), (1000.0, 2000.0));
    for position in 0..70 {
        assert_eq!(read(&cache, second, position), position as f32);
    }
    cache.free(first);
    assert_eq!(read(&cache, second, 69), 69.0);
    cache.free(second);
    assert_eq!(cache.free_tokens(), 4 * 64);
}

#[test]
fn truncation_keeps_what_is_before_and_frees_what_is_behind() {
    KvType::ALL.into_iter().for_each(truncation);
}

fn truncation(kv: KvType) {
    let mut cache = KvCache::new(&LAYERS, kv, 3 * 64, 1000).unwrap();
    let id = cache.create();
    cache.extend(&[(id, 130)]).unwrap();
    (0..130).for_each(|position| write(&cache, id, position, position as f32));
    for (length, free) in [(128, 64), (66, 64), (64, 128), (19, 128), (0, 192)] {
        cache.truncate(id, length);
        assert_eq!((cache.length(id), cache.free_tokens()), (length, free));
        (0..cache.length(id)).for_each(|position| assert_eq!(read(&cache, id, position), position as f32));
    }
}

#[test]
fn a_fork_that_was_cut_back_does_not_see_or_hurt_the_other() {
    KvType::ALL.into_iter().for_each(cut_back);
}

fn cut_back(kv: KvType) {
    let mut cache = KvCache::new(&LAYERS, kv, 3 * 64, 1000).unwrap();
    let first = cache.create();
    cache.extend(&[(first, 40)]).unwrap();
    (0..40).for_each(|position| write(&cache, first, position, 7.0));
    let second = cache.fork(first);
    cache.truncate(second, 10);
    assert_eq!(read(&cache, first, 39), 7.0);
    cache.extend(&[(second, 1)]).unwrap();
    write(&cache, second, 10, 3.0);
    assert_eq!((read(&cache, second, 9), read(&cache, second, 10)), (7.0, 3.0));
    assert_eq!(read(&cache, first, 10), 7.0);
    assert_eq!(read(&cache, first, 39), 7.0);
}

#[test]
fn a_full_cache_changes_nothing() {
    let mut cache = KvCache::new(&LAYERS, KvType::F16, 2 * 64, 1000).unwrap();
    let (first, second) = (cache.create(), cache.create());
    cache.extend(&[(first, 64)]).unwrap();
    let wanted = [(second, 64), (first, 1)];
    let expected = EngineError::CacheFull { needed: 2, free: 1, block: 64 };
    assert_eq!(cache.extend(&wanted), Err(expected));
    assert_eq!((cache.length(first), cache.length(second), cache.free_tokens()), (64, 0, 64));
}

#[test]
fn absurd_sizes_are_refused() {
    // A token of 2 heads of 8 and one of 24: 40 keys and as many values, and with bytes 3 scales of each; then the bookkeeping.
    assert_eq!(KvCache::bytes(&LAYERS, KvType::F16, 65), Some(2 * (64 * 2 * 80 + 8)));
    assert_eq!(KvCache::bytes(&LAYERS, KvType::I8, 65), Some(2 * (64 * 2 * (40 + 12) + 8)));
    assert_eq!(KvCache::bytes(&LAYERS, KvType::I8, usize::MAX), None);
    let huge = CacheShape { kv_heads: usize::MAX / 2, head_dim: 64 };
    assert_eq!(KvCache::bytes(&[huge], KvType::F16, 64), None);
    assert!(matches!(KvCache::new(&[huge], KvType::I8, 64, 64), Err(EngineError::Memory { .. })));
}
