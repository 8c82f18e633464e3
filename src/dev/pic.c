/*
 * Two 8259A Programmable Interrupt Controllers, cascaded at IRQ 2 as in a PC (Intel 231468-003, December 1988), and the
 * edge/level control registers of later chipsets (ELCR, e.g. Intel ICH9 datasheet §13.4.10).
 *
 * Not modelled: MCS-80 mode, buffered mode, the bytes of ICW3 (the cascade is wired).
 */
#include "dev/pic.h"

#include "base/base.h"

enum { MASTER, SLAVE, CASCADE_INPUT = 2, SPURIOUS_INPUT = 7 };

enum pic_port { PIC_COMMAND = 0, PIC_DATA = 1 };

/* "Initialization Command Words", figure 7 */
enum { ICW1_IC4 = 1 << 0, ICW1_SNGL = 1 << 1, ICW1_LTIM = 1 << 3, ICW1_SELECT = 1 << 4 };
enum { ICW4_AEOI = 1 << 1, ICW4_SFNM = 1 << 4 };
/* "Operation Command Words", figure 8 */
enum { OCW3_SELECT = 1 << 3, OCW3_RIS = 1 << 0, OCW3_RR = 1 << 1, OCW3_POLL = 1 << 2, OCW3_SMM = 1 << 5, OCW3_ESMM = 1 << 6 };
enum ocw2_command {
    OCW2_CLEAR_ROTATE_AEOI = 0,
    OCW2_EOI = 1,
    OCW2_NOP = 2,
    OCW2_SPECIFIC_EOI = 3,
    OCW2_SET_ROTATE_AEOI = 4,
    OCW2_ROTATE_EOI = 5,
    OCW2_SET_PRIORITY = 6,
    OCW2_ROTATE_SPECIFIC_EOI = 7,
};

/* IRQ 0, 1, 2, 8 and 13 are always edge-triggered. */
static const uint8_t elcr_writable[2] = { 0xF8, 0xDE };

static const uint64_t chip_port[2] = { 0x20, 0xA0 };
static const uint64_t elcr_base = 0x4D0;

/* --- one chip --- */

/* The set bit of highest priority, counted from it (0 is highest), or 8. */
static unsigned priority_of(const struct i8259 *chip, uint8_t set)
{
    for (unsigned p = 0; p < 8; p++)
        if (set >> ((chip->lowest + 1 + p) & 7) & 1)
            return p;
    return 8;
}

static unsigned input_at(const struct i8259 *chip, unsigned priority) { return (chip->lowest + 1 + priority) & 7; }

static bool level_triggered(const struct i8259 *chip, unsigned input) { return chip->ltim || chip->elcr >> input & 1; }

/* The input that asks for service, or -1. */
static int requesting_input(const struct i8259 *chip, bool master)
{
    unsigned request = priority_of(chip, chip->irr & ~chip->imr);
    if (request == 8)
        return -1;
    uint8_t in_service = chip->isr;
    if (chip->special_mask)
        in_service &= ~chip->imr;
    /* Special fully nested mode: a slave in service does not stop its own higher requests. */
    if (master && chip->icw4 & ICW4_SFNM)
        in_service &= ~(1 << CASCADE_INPUT);
    return request < priority_of(chip, in_service) ? (int)input_at(chip, request) : -1;
}

static void set_input(struct i8259 *chip, unsigned input, bool level)
{
    uint8_t bit = 1 << input;
    if (level_triggered(chip, input))
        chip->irr = level ? chip->irr | bit : chip->irr & ~bit;
    else if (level && !(chip->lines & bit))
        chip->irr |= bit;
    chip->lines = level ? chip->lines | bit : chip->lines & ~bit;
}

static void acknowledge_input(struct i8259 *chip, unsigned input)
{
    uint8_t bit = 1 << input;
    if (chip->icw4 & ICW4_AEOI) {
        if (chip->rotate_aeoi)
            chip->lowest = input;
    } else {
        chip->isr |= bit;
    }
    if (!level_triggered(chip, input))
        chip->irr &= ~bit;
}

static void reset_chip(struct i8259 *chip)
{
    /* NOTE(spec): the masks are undefined before ICW1. All masked, as firmware leaves them, since there is none. */
    *chip = (struct i8259){ .imr = 0xFF, .lowest = 7 };
}

/* --- the pair --- */

/* The slave's output is the master's input 2; the master's is INTR. */
static void update(struct pic *pic)
{
    bool slave = requesting_input(&pic->chip[SLAVE], false) >= 0;
    set_input(&pic->chip[MASTER], CASCADE_INPUT, slave);
    /* A slave that has nothing to ask for any more must not leave its edge behind. */
    if (!slave)
        pic->chip[MASTER].irr &= ~(1 << CASCADE_INPUT);
    bool level = requesting_input(&pic->chip[MASTER], true) >= 0;
    if (level == pic->intr_level)
        return;
    pic->intr_level = level;
    irq_set(&pic->intr, level);
}

void pic_set_irq(void *sink, unsigned n, bool level)
{
    struct pic *pic = sink;
    if (n >= 16 || n == CASCADE_INPUT)
        return;
    trace(pic->device.world.log, irq_line, "8259 irq %u %d", n, level);
    set_input(&pic->chip[n >> 3], n & 7, level);
    update(pic);
}

/* "Interrupt Sequence": an input that went away before the acknowledge cycle is answered as input 7, not in service. */
static int acknowledge_chip(struct pic *pic, unsigned n)
{
    struct i8259 *chip = &pic->chip[n];
    int input = requesting_input(chip, n == MASTER);
    if (input < 0)
        return chip->icw2 + SPURIOUS_INPUT;
    acknowledge_input(chip, (unsigned)input);
    if (n == MASTER && input == CASCADE_INPUT)
        return acknowledge_chip(pic, SLAVE);
    return chip->icw2 + input;
}

int pic_acknowledge(void *owner)
{
    struct pic *pic = owner;
    pthread_mutex_t *lock = pic->device.world.lock;
    if (lock)
        pthread_mutex_lock(lock);
    int vector = acknowledge_chip(pic, MASTER);
    /* A level-triggered request still waits, an edge made room for the next: INTR must rise anew for either. */
    pic->intr_level = false;
    irq_set(&pic->intr, false);
    update(pic);
    if (lock)
        pthread_mutex_unlock(lock);
    return vector;
}

/* --- registers --- */

static void write_icw1(struct i8259 *chip, uint8_t value)
{
    uint8_t lines = chip->lines, elcr = chip->elcr;
    *chip = (struct i8259){ .lowest = 7, .lines = lines, .elcr = elcr, .init_step = 2, .ltim = value & ICW1_LTIM,
                            .single = value & ICW1_SNGL, .need_icw4 = value & ICW1_IC4 };
    /* Edge sense is cleared: an input must rise again. Levels count as they are. */
    for (unsigned input = 0; input < 8; input++)
        if (level_triggered(chip, input) && lines >> input & 1)
            chip->irr |= 1 << input;
}

static void write_ocw2(struct i8259 *chip, uint8_t value)
{
    unsigned input = value & 7, highest = priority_of(chip, chip->isr);
    enum ocw2_command command = value >> 5;
    switch (command) {
    case OCW2_CLEAR_ROTATE_AEOI: chip->rotate_aeoi = false; break;
    case OCW2_SET_ROTATE_AEOI: chip->rotate_aeoi = true; break;
    case OCW2_EOI: case OCW2_ROTATE_EOI:
        if (highest == 8)
            break;
        input = input_at(chip, highest);
        chip->isr &= ~(1 << input);
        if (command == OCW2_ROTATE_EOI)
            chip->lowest = input;
        break;
    case OCW2_SPECIFIC_EOI: case OCW2_ROTATE_SPECIFIC_EOI:
        chip->isr &= ~(1 << input);
        if (command == OCW2_ROTATE_SPECIFIC_EOI)
            chip->lowest = input;
        break;
    case OCW2_SET_PRIORITY: chip->lowest = input; break;
    case OCW2_NOP: break;
    }
}

static void write_ocw3(struct i8259 *chip, uint8_t value)
{
    if (value & OCW3_POLL)
        chip->poll = true;
    if (value & OCW3_RR)
        chip->read_isr = value & OCW3_RIS;
    if (value & OCW3_ESMM)
        chip->special_mask = value & OCW3_SMM;
}

static void write_data(struct i8259 *chip, uint8_t value)
{
    switch (chip->init_step) {
    case 2:
        chip->icw2 = value & 0xF8;
        chip->init_step = chip->single ? (chip->need_icw4 ? 4 : 0) : 3;
        break;
    case 3: chip->init_step = chip->need_icw4 ? 4 : 0; break;
    case 4:
        chip->icw4 = value;
        chip->init_step = 0;
        break;
    default: chip->imr = value; break;
    }
}

/* "Poll Command": the read is the acknowledge. */
static uint8_t read_poll(struct pic *pic, unsigned n)
{
    struct i8259 *chip = &pic->chip[n];
    chip->poll = false;
    int input = requesting_input(chip, n == MASTER);
    if (input < 0)
        return 0;
    acknowledge_input(chip, (unsigned)input);
    return 0x80 | (uint8_t)input;
}

/* --- access --- */

static void access_chip(struct pic *pic, unsigned n, struct access *access)
{
    struct i8259 *chip = &pic->chip[n];
    uint8_t value = (uint8_t)access->value;
    if (!access->write) {
        if (chip->poll)
            access->value = read_poll(pic, n);
        else if (access->address == PIC_DATA)
            access->value = chip->imr;
        else
            access->value = chip->read_isr ? chip->isr : chip->irr;
    } else if (access->address == PIC_DATA) {
        write_data(chip, value);
    } else if (value & ICW1_SELECT) {
        write_icw1(chip, value);
    } else if (value & OCW3_SELECT) {
        write_ocw3(chip, value);
    } else {
        write_ocw2(chip, value);
    }
    update(pic);
}

static enum access_result access_master(void *owner, struct access *access)
{
    access_chip(owner, MASTER, access);
    return ACCESS_OK;
}

static enum access_result access_slave(void *owner, struct access *access)
{
    access_chip(owner, SLAVE, access);
    return ACCESS_OK;
}

static enum access_result access_elcr(void *owner, struct access *access)
{
    struct pic *pic = owner;
    struct i8259 *chip = &pic->chip[access->address & 1];
    if (!access->write) {
        access->value = chip->elcr;
        return ACCESS_OK;
    }
    chip->elcr = (uint8_t)access->value & elcr_writable[access->address & 1];
    for (unsigned input = 0; input < 8; input++)
        if (level_triggered(chip, input))
            set_input(chip, input, chip->lines >> input & 1);
    update(pic);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void pic_reset(struct device *device)
{
    struct pic *pic = (struct pic *)device;
    reset_chip(&pic->chip[MASTER]);
    reset_chip(&pic->chip[SLAVE]);
    pic->intr_level = false;
    irq_set(&pic->intr, false);
}

static bool pic_init(struct device *device, struct error *err)
{
    struct pic *pic = (struct pic *)device;
    const struct region port = { .access_min = 1, .access_max = 1, .owner = pic, .lock = device->world.lock };
    pic->port[MASTER] = pic->port[SLAVE] = pic->elcr_port = port;
    pic->port[MASTER].name = "pic-master";
    pic->port[MASTER].access = access_master;
    pic->port[SLAVE].name = "pic-slave";
    pic->port[SLAVE].access = access_slave;
    for (unsigned n = 0; n < 2; n++) {
        pic->port[n].base = chip_port[n];
        pic->port[n].size = 2;
        bus_map(device->world.ports, &pic->port[n]);
    }
    pic->elcr_port.name = "pic-elcr";
    pic->elcr_port.base = elcr_base;
    pic->elcr_port.size = 2;
    pic->elcr_port.access = access_elcr;
    bus_map(device->world.ports, &pic->elcr_port);
    return true;
}

static void pic_resume(struct device *device)
{
    struct pic *pic = (struct pic *)device;
    for (unsigned n = 0; n < 2; n++) {
        pic->chip[n].lowest &= 7;
        pic->chip[n].elcr &= elcr_writable[n];
        pic->chip[n].icw2 &= 0xF8;
    }
    irq_set(&pic->intr, pic->intr_level);
    update(pic);
}

static void pic_fini(struct device *device)
{
    struct pic *pic = (struct pic *)device;
    bus_unmap(device->world.ports, &pic->port[MASTER]);
    bus_unmap(device->world.ports, &pic->port[SLAVE]);
    bus_unmap(device->world.ports, &pic->elcr_port);
}

/* --- state list, type --- */

static const struct state_field chip_fields[] = {
    STATE_SCALAR(struct i8259, irr),        STATE_SCALAR(struct i8259, isr),          STATE_SCALAR(struct i8259, imr),
    STATE_SCALAR(struct i8259, lines),      STATE_SCALAR(struct i8259, elcr),         STATE_SCALAR(struct i8259, icw2),
    STATE_SCALAR(struct i8259, icw4),       STATE_SCALAR(struct i8259, init_step),    STATE_SCALAR(struct i8259, lowest),
    STATE_SCALAR(struct i8259, ltim),       STATE_SCALAR(struct i8259, single),       STATE_SCALAR(struct i8259, need_icw4),
    STATE_SCALAR(struct i8259, read_isr),   STATE_SCALAR(struct i8259, poll),         STATE_SCALAR(struct i8259, special_mask),
    STATE_SCALAR(struct i8259, rotate_aeoi),
};
static const struct state_list chip_state = STATE_LIST("i8259", 1, chip_fields);

static const struct state_field pic_fields[] = {
    STATE_NESTED_ARRAY(struct pic, chip, chip_state),
    STATE_SCALAR(struct pic, intr_level),
};
static const struct state_list pic_state = STATE_LIST("pic", 1, pic_fields);

const struct device_type device_pic = {
    .name = "pic",
    .text = "8259A interrupt controllers, a pair",
    .size = sizeof(struct pic),
    .state = &pic_state,
    .init = pic_init,
    .reset = pic_reset,
    .resume = pic_resume,
    .fini = pic_fini,
};
