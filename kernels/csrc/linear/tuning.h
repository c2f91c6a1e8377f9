// Product of few rows: sizes that are open. They can be set on the compiler's command line; perf/gpu/linear.py compiles
// and times some values.
//
// What they are chosen from, for an H200 (132 multiprocessors) and Llama-3.1-8B:
// - 4.5 TB/s need about 34 KB of weights in flight per multiprocessor, at least, and twice as many are better. 8 warps
//   with 2 tiles and 2 chunks have 32 KB in flight. With 4 chunks a whole decode step over 16 rows took 3 % longer
//   (perf/results/gpu_h200_steps.json).
// - A product with N = 4096 has 128 CTAs of 32 rows, all of K in each: one per multiprocessor, 97 % of them busy. Such a
//   CTA has 16 warps, so 64 KB are in flight. With N = 6144 it has 192 CTAs, all of which are resident at the same time:
//   then each gets the same share of the bandwidth, so they end together although 60 multiprocessors have two. With N =
//   28672 the CTAs come in 3.4 waves, and the next product's begin where the last wave leaves room.
// - Each CTA reads all of x. With 16 tokens and 32 rows that is half as many bytes as it reads of the weight. They come
//   from L2, and from L1 for a CTA that follows another one on the same multiprocessor.
// - To request the next product's weight into L2 at the end of a CTA did not help: the step took 1 to 5 % longer with
//   1 to 4 KB of each row.
#pragma once

// Tiles of 16 rows of the weight in a CTA; an even number.
#ifndef KVB_LINEAR_TILES
#define KVB_LINEAR_TILES 2
#endif

// Warps of a CTA, which split K: where there are more CTAs than multiprocessors, and where there are not.
#ifndef KVB_LINEAR_WARPS
#define KVB_LINEAR_WARPS 8
#endif
#ifndef KVB_LINEAR_WARPS_ALONE
#define KVB_LINEAR_WARPS_ALONE 16
#endif

// Chunks of 32 elements of K that a warp has in flight; an even number.
#ifndef KVB_LINEAR_DEPTH
#define KVB_LINEAR_DEPTH 2
#endif
